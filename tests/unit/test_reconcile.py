"""Records that stand still are published anew or end (P4)."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from core.backends import open_usage
from core.domain.records import RecordKey, Status, retry
from core.domain.usage import Usage
from core.errors import Unavailable
from core.ports import BlobStore
from core.settings import Settings
from tests.support.pictures import picture
from tests.support.records import claimed
from tests.support.worker import RunningWorker, running_worker, settings_in
from worker.tasks.reconcile import MAX_FAILURES, OUTCOMES, reconcile


class Now:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def pass_(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path, stale_seconds=600, max_backoff_seconds=60)


@pytest.fixture
async def worker(settings: Settings, now: Now) -> AsyncIterator[RunningWorker]:
    async with running_worker(settings, now) as running:
        yield running


def published(settings: Settings) -> int:
    """The messages in the queue's database."""
    connection = sqlite3.connect(settings.data_dir / "queue.db")
    try:
        (count,) = connection.execute("SELECT count(*) FROM messages").fetchone()
    finally:
        connection.close()
    return int(count)


def counts(**changes: int) -> dict[str, int]:
    return dict.fromkeys((*OUTCOMES, "usage_purged"), 0) | changes


async def swept(worker: RunningWorker) -> dict[str, int]:
    answer = await worker.client.post("/reconcile")
    assert answer.status_code == 200
    found: dict[str, int] = answer.json()
    return found


async def test_a_record_that_moves_is_left_alone(worker: RunningWorker, now: Now) -> None:
    await worker.submit()
    now.pass_(599)
    assert not any((await swept(worker)).values())


async def test_a_stale_record_is_published_once_per_period(
    worker: RunningWorker, settings: Settings, now: Now
) -> None:
    key = await worker.submit()
    before = published(settings)
    now.pass_(601)
    assert (await swept(worker))["republished"] == 1
    assert (await swept(worker))["republished"] == 0
    assert published(settings) == before + 1
    assert (await worker.record(key)).status is Status.PENDING
    now.pass_(601)
    assert (await swept(worker))["republished"] == 1


async def test_one_whose_owner_died_is_published(worker: RunningWorker, now: Now) -> None:
    key = await worker.submit()
    await claimed(worker.backend.records, key, timedelta(seconds=30))
    now.pass_(601)
    assert (await swept(worker))["republished"] == 1
    assert (await worker.push(key)).status_code == 204
    assert (await worker.record(key)).status is Status.SUCCESS


async def test_finished_records_are_not_touched(worker: RunningWorker, now: Now) -> None:
    key = await worker.submit()
    await worker.push(key)
    now.pass_(10_000)
    assert not any((await swept(worker)).values())
    assert (await worker.record(key)).status is Status.SUCCESS


async def test_one_older_than_any_message_ends(
    worker: RunningWorker, settings: Settings, now: Now
) -> None:
    key = await worker.submit()
    before = published(settings)
    now.pass_(settings.delivery.retention + 1)
    assert await swept(worker) == counts(republished=0, expired=1)
    record = await worker.record(key)
    assert record.error is not None
    assert (record.error.code, record.error.retryable) == ("expired", True)
    assert published(settings) == before
    assert (await swept(worker))["expired"] == 0


async def test_an_old_record_that_was_retried_has_its_time_again(
    worker: RunningWorker, settings: Settings, now: Now
) -> None:
    key = await worker.submit()
    now.pass_(settings.delivery.retention + 1)
    assert (await swept(worker))["expired"] == 1
    assert await worker.backend.records.change(key, retry())
    now.pass_(601)
    assert await swept(worker) == counts(republished=1, expired=0)


async def test_several_at_once_publish_each_record_once(
    worker: RunningWorker, settings: Settings, now: Now
) -> None:
    for seed in range(10):
        await worker.submit(picture(seed))
    before = published(settings)
    now.pass_(601)
    sweeps = await asyncio.gather(*(swept(worker) for _ in range(6)))
    assert sum(sweep["republished"] for sweep in sweeps) == 10
    assert published(settings) == before + 10


async def test_the_limit_takes_the_oldest(
    worker: RunningWorker, settings: Settings, now: Now
) -> None:
    keys: list[RecordKey] = []
    for seed in range(5):
        keys.append(await worker.submit(picture(seed)))
        now.pass_(1)
    now.pass_(601)
    done = await reconcile(worker.backend, settings.delivery, now(), limit=2)
    assert done["republished"] == 2
    moved = [key for key in keys if (await worker.record(key)).updated_at == now()]
    assert moved == keys[:2]


async def test_one_whose_image_is_gone_ends_and_a_late_message_mends_it(
    worker: RunningWorker, settings: Settings, now: Now
) -> None:
    """An upload so slow that it was called lost: its message is the proof that it was not."""
    image = picture(1)
    key = await worker.submit(image)
    await worker.backend.blobs.delete(key.blob_name)
    before = published(settings)
    now.pass_(601)
    assert await swept(worker) == counts(lost=1)
    record = await worker.record(key)
    assert record.error is not None
    assert (record.error.code, record.error.retryable) == ("upload_lost", True)
    assert published(settings) == before
    await worker.backend.blobs.put(key.blob_name, image, "image/jpeg")
    assert (await worker.push(key)).status_code == 204
    assert (await worker.record(key)).status is Status.SUCCESS


async def test_an_unreadable_image_storage_ends_no_record(
    worker: RunningWorker, settings: Settings, now: Now
) -> None:
    key = await worker.submit()
    now.pass_(601)
    blobs = settings.data_dir / "blobs"
    blobs.rename(blobs.with_name("away"))
    blobs.write_text("not a folder")
    assert (await worker.client.post("/reconcile")).status_code == 503
    assert (await worker.record(key)).status is Status.PENDING
    blobs.unlink()
    blobs.with_name("away").rename(blobs)
    assert await swept(worker) == counts(republished=1)


class PartlyUnreadable:
    """A blob store in which nobody can say whether these images are there."""

    def __init__(self, blobs: BlobStore, unreadable: Collection[str]) -> None:
        self._blobs = blobs
        self._unreadable = unreadable

    async def exists(self, name: str) -> bool:
        if name in self._unreadable:
            raise Unavailable("The disk does not answer.")
        return await self._blobs.exists(name)


async def test_images_that_cannot_be_looked_for_hold_up_nothing_else(
    worker: RunningWorker, settings: Settings, now: Now
) -> None:
    buried = await worker.submit(picture(0))
    await worker.dead_letter(buried)
    now.pass_(settings.dead_letter_retention_seconds)
    keys = list[RecordKey]()  # the oldest first
    for seed in range(1, 20):
        keys.append(await worker.submit(picture(seed)))
        now.pass_(1)
    now.pass_(601)
    before = published(settings)

    async def sweep(unreadable: int) -> None:
        names = {key.blob_name for key in keys[:unreadable]}
        blobs = cast(BlobStore, PartlyUnreadable(worker.backend.blobs, names))
        with pytest.raises(Unavailable):
            await reconcile(replace(worker.backend, blobs=blobs), settings.delivery, now())

    await sweep(MAX_FAILURES)  # so many that it is the store which does not answer
    assert (published(settings), len(await worker.letters())) == (before, 1)
    await sweep(MAX_FAILURES - 1)
    assert published(settings) == before + len(keys) - MAX_FAILURES + 1
    assert await worker.letters() == []


async def test_old_dead_letters_are_purged(worker: RunningWorker, now: Now) -> None:
    key = await worker.submit()
    await worker.dead_letter(key)
    now.pass_(30 * 24 * 3600 - 1)
    assert (await swept(worker))["purged"] == 0
    now.pass_(2)
    assert (await swept(worker))["purged"] == 1
    assert await worker.letters() == []


async def test_counts_of_keys_are_kept_for_so_many_days(
    worker: RunningWorker, settings: Settings, now: Now
) -> None:
    today = now().date()
    kept = Usage("acme", "key1", today, 1)
    async with open_usage(settings) as usage:
        await usage.add([kept, Usage("acme", "key1", today - timedelta(days=1), 1)])
        now.pass_(399 * 24 * 3600)
        assert (await swept(worker))["usage_purged"] == 0
        now.pass_(24 * 3600)
        assert (await swept(worker))["usage_purged"] == 1
        assert await usage.read("acme", today - timedelta(days=1)) == [kept]
        now.pass_(24 * 3600)
        assert (await swept(worker))["usage_purged"] == 1
        assert await usage.read("acme", today - timedelta(days=1)) == []


async def test_a_worker_needs_no_secret_of_the_keys(
    worker: RunningWorker, settings: Settings
) -> None:
    assert (await worker.client.post("/reconcile")).status_code == 200
    assert not (settings.data_dir / "key.secret").exists()
