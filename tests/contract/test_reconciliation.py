"""Concurrent reconcilers and uploads, on every backend (P1, P4)."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from app.images.submission import SubmittedImage, submit
from core.backends import Backend
from core.domain.channels import Channel
from core.domain.messages import ClassifyImage, Message
from core.domain.records import Record, RecordKey, Status, advance, new_record
from core.ports import Backlog, BlobStore, Publisher
from core.settings import Settings
from tests.support.clock import MovableClock
from tests.support.pictures import picture, sha256
from tests.support.records import claimed
from worker.tasks.reconcile import OUTCOMES, reconcile

MODEL = "m@0123456789ab"


class Counting:
    """A publisher that records its messages."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self.system = publisher.system
        self.messages: list[Message] = []

    @property
    def published(self) -> list[RecordKey]:
        """The records of the messages, which are all ClassifyImage."""
        assert all(isinstance(message, ClassifyImage) for message in self.messages)
        return [message.key for message in self.messages if isinstance(message, ClassifyImage)]

    def topic(self, channel: Channel) -> str:
        return self._publisher.topic(channel)

    async def publish(self, message: Message) -> str:
        self.messages.append(message)
        return await self._publisher.publish(message)

    async def ping(self) -> None:
        await self._publisher.ping()

    async def backlog(self) -> Backlog | None:
        return await self._publisher.backlog()


@pytest.fixture
def counting(backend: Backend) -> Counting:
    return Counting(backend.publisher)


@pytest.fixture
def counted(backend: Backend, counting: Counting) -> Backend:
    return replace(backend, publisher=counting)


async def stored(backend: Backend, clock: MovableClock, number: int, *, blob: bool) -> RecordKey:
    image = picture(number)
    key = RecordKey("public", sha256(image), MODEL)
    assert await backend.records.create(new_record(key, clock()))
    if blob:
        await backend.blobs.put(key.blob_name, image, "image/jpeg")
    return key


async def record_of(backend: Backend, key: RecordKey) -> Record:
    record = await backend.records.get(key)
    assert record is not None
    return record


async def test_concurrent_runs_publish_each_record_once(
    counted: Backend, counting: Counting, settings: Settings, clock: MovableClock
) -> None:
    policy = settings.delivery
    kept = [await stored(counted, clock, number, blob=True) for number in range(6)]
    lost = [await stored(counted, clock, number, blob=False) for number in range(6, 9)]
    # One of each unfinished status.
    await counted.records.change(kept[1], advance(Status.PENDING, Status.QUEUED))
    await claimed(counted.records, kept[2], timedelta(seconds=5))
    now = clock.move(policy.stale_after + 10)
    runs = await asyncio.gather(*(reconcile(counted, policy, now) for _ in range(2)))
    assert sorted(key.image_hash for key in counting.published) == sorted(
        key.image_hash for key in kept
    )
    assert sum(run["republished"] for run in runs) == 6
    assert sum(run["lost"] for run in runs) == 3
    seen = sum(sum(run.values()) for run in runs)
    assert 9 <= seen <= 18
    assert sum(run["skipped"] for run in runs) == seen - 9
    for key in lost:
        record = await record_of(counted, key)
        assert record.error is not None
        assert (record.error.code, record.error.retryable) == ("upload_lost", True)
    assert all([not (await record_of(counted, key)).status.terminal for key in kept])
    # The next run finds no stale record.
    assert not any((await reconcile(counted, policy, now)).values())


async def test_run_handles_at_most_its_limit(
    counted: Backend, settings: Settings, clock: MovableClock
) -> None:
    for number in range(5):
        await stored(counted, clock, number, blob=number % 2 == 0)
        clock.move(1)
    now = clock.move(settings.delivery.stale_after + 10)
    runs = [await reconcile(counted, settings.delivery, now, limit=2) for _ in range(4)]
    assert [sum(run.values()) for run in runs] == [2, 2, 1, 0]


class Interrupted:
    """A blob store that calls `meanwhile` between the lookup of a blob and its answer."""

    def __init__(self, blobs: BlobStore, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._blobs = blobs
        self._meanwhile = meanwhile

    async def exists(self, name: str) -> bool:
        found = await self._blobs.exists(name)
        await self._meanwhile()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)


@pytest.mark.parametrize("first", ["upload", "reconciler"])
async def test_upload_concurrent_with_a_lost_verdict_is_kept(
    counted: Backend, settings: Settings, clock: MovableClock, first: str
) -> None:
    """P1: the second of the two finds what the first has done."""
    policy = settings.delivery
    key = await stored(counted, clock, 1, blob=False)
    now = clock.move(policy.stale_after + 10)

    async def upload() -> None:
        record = await submit(
            counted, SubmittedImage(key, picture(1), "image/jpeg"), 10**8, clock, policy
        )
        assert record.status is Status.PENDING

    if first == "upload":
        blobs: Any = Interrupted(counted.blobs, upload)
        watched = replace(counted, blobs=blobs)
        counts = await reconcile(watched, policy, now)
        assert (counts["lost"], counts["skipped"]) == (0, 1)
    else:
        assert (await reconcile(counted, policy, now))["lost"] == 1
        await upload()
    assert (await record_of(counted, key)).status is Status.PENDING
    assert await counted.blobs.exists(key.blob_name)


async def test_dead_letters_after_their_retention_are_purged(
    counted: Backend, settings: Settings, clock: MovableClock
) -> None:
    from tests.contract.test_dead_letter_store import PUBLIC, aged

    young, _ = await aged(counted.dead_letters, clock, 2)
    now = young.died_at + timedelta(seconds=settings.delivery.dead_letter_retention)
    counts = await reconcile(counted, settings.delivery, now)
    assert counts == dict.fromkeys(OUTCOMES, 0) | {"purged": 1}
    assert await counted.dead_letters.list(PUBLIC, 10) == [young]
