"""Stale records are published again, or fail (P4)."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from core.backends import open_usage
from core.domain.messages import ClassifyImage
from core.domain.priority import Priority
from core.domain.records import (
    Record,
    RecordKey,
    Status,
    new_record,
    release,
    retry,
    want,
)
from core.domain.transitions import Transition
from core.domain.usage import Usage, UsageBatch
from core.errors import Unavailable
from core.ports import BlobStore
from core.settings import Settings
from tests.support.clock import MovableClock
from tests.support.faults import Once
from tests.support.pictures import picture, sha256
from tests.support.records import claimed
from tests.support.worker import (
    RunningWorker,
    running_worker,
    settings_in,
)
from tests.support.worker_jobs import (
    LEASE,
    cancel_job,
    key_of,
    pictures,
    submit_job,
)
from worker.tasks.reconcile import MAX_FAILURES, reconcile


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path, max_backoff_seconds=60)


@pytest.fixture
async def worker(settings: Settings, clock: MovableClock) -> AsyncIterator[RunningWorker]:
    async with running_worker(settings, clock) as running:
        yield running


def published(settings: Settings) -> int:
    """The number of messages in the queue's database."""
    connection = sqlite3.connect(settings.data_dir / "queue.db")
    try:
        (count,) = connection.execute("SELECT count(*) FROM messages").fetchone()
    finally:
        connection.close()
    return int(count)


async def test_recent_record_is_unchanged(worker: RunningWorker, clock: MovableClock) -> None:
    await worker.submit()
    clock.move(599)
    assert await worker.reconcile() == {}


async def test_stale_record_is_published_once_per_period(
    worker: RunningWorker, settings: Settings, clock: MovableClock
) -> None:
    key = await worker.submit()
    before = published(settings)
    clock.move(601)
    assert await worker.reconcile() == {"republished": 1}
    assert await worker.reconcile() == {}
    assert published(settings) == before + 1
    assert (await worker.record(key)).status is Status.PENDING
    clock.move(601)
    assert await worker.reconcile() == {"republished": 1}


async def test_waiting_record_is_published_at_doubling_intervals(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """A message may be refused for hours. A record whose message is lost is repaired still."""
    key = await worker.submit()
    began, published = clock(), list[float]()
    for _ in range(24 * 12):
        clock.move(300)
        if await worker.reconcile() == {"republished": 1}:
            published.append((clock() - began).total_seconds() / 60)
    assert published == [15, 30, 60, 120, 240, 480, 960]
    assert (await worker.record(key)).status is Status.PENDING


async def test_record_expires_between_two_publications(
    worker: RunningWorker, settings: Settings, clock: MovableClock
) -> None:
    key = await worker.submit()
    clock.move(settings.delivery.retention - 1)
    assert await worker.reconcile() == {"republished": 1}
    clock.move(602)
    assert await worker.reconcile() == {"expired": 1}
    assert (await worker.record(key)).status is Status.ERROR


async def test_retry_begins_the_intervals_again(worker: RunningWorker, clock: MovableClock) -> None:
    key = await worker.submit()
    for minutes in (60, 60):
        clock.move(60 * minutes)
        assert await worker.reconcile() == {"republished": 1}
    await worker.dead_letter(key)
    assert await worker.backend.records.change(key, retry())
    clock.move(601)
    assert await worker.reconcile() == {"republished": 1}


async def test_waiting_records_delay_no_other_record(
    worker: RunningWorker, clock: MovableClock
) -> None:
    waiting = [await worker.submit(image) for image in pictures(150)]
    clock.move(3600)
    assert await worker.reconcile() == {"republished": 100}
    assert await worker.reconcile() == {"republished": 50}
    clock.move(1)
    other = await worker.submit(picture(1000))
    clock.move(601)
    assert await worker.reconcile() == {"waiting": 150, "republished": 1}
    assert worker.published()[-1] == ClassifyImage(other)
    assert len(worker.published()) == len(waiting) + 1


async def test_published_message_has_the_priority_of_the_record(
    worker: RunningWorker, clock: MovableClock
) -> None:
    key = RecordKey("public", sha256(picture(1)), worker.model)
    await worker.backend.records.create(new_record(key, clock(), Priority.LOW))
    await worker.backend.blobs.put(key.blob_name, picture(1), "image/jpeg")
    clock.move(601)
    assert await worker.reconcile() == {"republished": 1}
    assert worker.published() == [ClassifyImage(key, priority=Priority.LOW)]


async def test_record_of_a_dead_worker_is_published(
    worker: RunningWorker, clock: MovableClock
) -> None:
    key = await worker.submit()
    await claimed(worker.backend.records, key, timedelta(seconds=30))
    clock.move(601)
    assert await worker.reconcile() == {"republished": 1}
    assert (await worker.push(key)).status_code == 204
    assert (await worker.record(key)).status is Status.SUCCESS


async def test_finished_record_is_unchanged(worker: RunningWorker, clock: MovableClock) -> None:
    key = await worker.submit()
    await worker.push(key)
    clock.move(10_000)
    assert await worker.reconcile() == {}
    assert (await worker.record(key)).status is Status.SUCCESS


async def test_record_older_than_any_message_expires(
    worker: RunningWorker, settings: Settings, clock: MovableClock
) -> None:
    key = await worker.submit()
    before = published(settings)
    clock.move(settings.delivery.retention + 1)
    assert await worker.reconcile() == {"expired": 1}
    record = await worker.record(key)
    assert record.error is not None
    assert (record.error.code, record.error.retryable) == ("expired", True)
    assert published(settings) == before
    assert await worker.reconcile() == {}


async def test_retried_record_does_not_expire(
    worker: RunningWorker, settings: Settings, clock: MovableClock
) -> None:
    key = await worker.submit()
    clock.move(settings.delivery.retention + 1)
    assert await worker.reconcile() == {"expired": 1}
    assert await worker.backend.records.change(key, retry())
    clock.move(601)
    assert await worker.reconcile() == {"republished": 1}


async def test_concurrent_runs_publish_each_record_once(
    worker: RunningWorker, settings: Settings, clock: MovableClock
) -> None:
    for seed in range(10):
        await worker.submit(picture(seed))
    before = published(settings)
    clock.move(601)
    sweeps = await asyncio.gather(*(worker.reconcile() for _ in range(6)))
    assert sum(sweep.get("republished", 0) for sweep in sweeps) == 10
    assert published(settings) == before + 10


async def test_limited_run_takes_the_oldest_records(
    worker: RunningWorker, settings: Settings, clock: MovableClock
) -> None:
    keys: list[RecordKey] = []
    for seed in range(5):
        keys.append(await worker.submit(picture(seed)))
        clock.move(1)
    clock.move(601)
    done = await reconcile(worker.backend, settings.delivery, clock(), limit=2)
    assert done["republished"] == 2
    moved = [key for key in keys if (await worker.record(key)).updated_at == clock()]
    assert moved == keys[:2]


async def test_lost_upload_fails_and_its_late_message_repairs_it(
    worker: RunningWorker, settings: Settings, clock: MovableClock
) -> None:
    """A slow upload counts as lost, but its message proves that it was not."""
    image = picture(1)
    key = await worker.submit(image)
    await worker.backend.blobs.delete(key.blob_name)
    before = published(settings)
    clock.move(601)
    assert await worker.reconcile() == {"lost": 1}
    record = await worker.record(key)
    assert record.error is not None
    assert (record.error.code, record.error.retryable) == ("upload_lost", True)
    assert published(settings) == before
    await worker.backend.blobs.put(key.blob_name, image, "image/jpeg")
    assert (await worker.push(key)).status_code == 204
    assert (await worker.record(key)).status is Status.SUCCESS


async def test_failing_blob_store_fails_no_record(
    worker: RunningWorker, settings: Settings, clock: MovableClock
) -> None:
    key = await worker.submit()
    clock.move(601)
    blobs = settings.data_dir / "blobs"
    blobs.rename(blobs.with_name("away"))
    blobs.write_text("not a folder")
    assert (await worker.client.post("/reconcile")).status_code == 503
    assert (await worker.record(key)).status is Status.PENDING
    blobs.unlink()
    blobs.with_name("away").rename(blobs)
    assert await worker.reconcile() == {"republished": 1}


class PartlyUnreadable:
    """A blob store that fails for some names."""

    def __init__(self, blobs: BlobStore, unreadable: Collection[str]) -> None:
        self._blobs = blobs
        self._unreadable = unreadable

    async def exists(self, name: str) -> bool:
        if name in self._unreadable:
            raise Unavailable("The disk does not answer.")
        return await self._blobs.exists(name)


async def test_images_whose_existence_is_unknown_delay_no_other_record(
    worker: RunningWorker, settings: Settings, clock: MovableClock
) -> None:
    buried = await worker.submit(picture(0))
    await worker.dead_letter(buried)
    clock.move(settings.delivery.dead_letter_retention)
    keys = list[RecordKey]()  # oldest first
    for seed in range(1, 20):
        keys.append(await worker.submit(picture(seed)))
        clock.move(1)
    clock.move(601)
    before = published(settings)

    async def sweep(unreadable: int) -> None:
        names = {key.blob_name for key in keys[:unreadable]}
        blobs = cast(BlobStore, PartlyUnreadable(worker.backend.blobs, names))
        with pytest.raises(Unavailable):
            await reconcile(replace(worker.backend, blobs=blobs), settings.delivery, clock())

    await sweep(MAX_FAILURES)  # so many that the run ends
    assert (published(settings), len(await worker.letters())) == (before, 1)
    await sweep(MAX_FAILURES - 1)
    assert published(settings) == before + len(keys) - MAX_FAILURES + 1
    assert await worker.letters() == []


async def test_old_dead_letters_are_purged(worker: RunningWorker, clock: MovableClock) -> None:
    key = await worker.submit()
    await worker.dead_letter(key)
    clock.move(30 * 24 * 3600 - 1)
    assert await worker.reconcile() == {}
    clock.move(2)
    assert await worker.reconcile() == {"purged": 1}
    assert await worker.letters() == []


async def test_old_request_counts_are_purged(
    worker: RunningWorker, settings: Settings, clock: MovableClock
) -> None:
    today = clock().date()
    kept = Usage("acme", "key1", today, 1)
    async with open_usage(settings) as usage:
        await usage.add(UsageBatch(kept))
        await usage.add(UsageBatch(Usage("acme", "key1", today - timedelta(days=1), 1)))
        clock.move(399 * 24 * 3600)
        assert await worker.reconcile() == {}
        clock.move(24 * 3600)
        assert await worker.reconcile() == {"usage_purged": 1}
        assert await usage.read("acme", today - timedelta(days=1)) == [kept]
        clock.move(24 * 3600)
        assert await worker.reconcile() == {"usage_purged": 1}
        assert await usage.read("acme", today - timedelta(days=1)) == []


async def test_worker_creates_no_key_secret(worker: RunningWorker, settings: Settings) -> None:
    assert (await worker.client.post("/reconcile")).status_code == 200
    assert not (settings.data_dir / "key.secret").exists()


# --- Records of jobs ------------------------------------------------------------------------------


async def test_records_of_a_live_job_are_left_to_it(
    worker: RunningWorker, clock: MovableClock
) -> None:
    await submit_job(worker, pictures(2), not_before=clock() + timedelta(days=1))
    for _ in range(3):
        clock.move(601)
        assert await worker.reconcile() == {"waiting": 2}
        assert worker.published() == []


async def test_records_of_cancelled_and_deleted_jobs_are_cancelled(
    worker: RunningWorker, clock: MovableClock
) -> None:
    image, shared, other = pictures(3)
    key = await submit_job(worker, [image, shared], not_before=clock() + timedelta(days=1))
    deleted = await submit_job(worker, [other])
    await worker.backend.records.change(key_of(worker, shared), want(Priority.LOW))
    await cancel_job(worker, key)
    await worker.backend.jobs.delete(deleted)
    clock.move(601)
    assert await worker.reconcile() == {"cancelled": 2, "republished": 1}
    errors = [(await worker.record(key_of(worker, each))).error for each in (image, other)]
    assert [error and (error.code, error.retryable) for error in errors] == [
        ("cancelled", True)
    ] * 2
    assert (await worker.record(key_of(worker, shared))).status is Status.PENDING


async def test_record_that_a_client_asks_for_meanwhile_is_kept(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """P1: a client asks after the reconciler's read and before its write.

    The request changes the record's job and not its `updated_at`.
    """
    (image,) = pictures(1)
    key = await submit_job(worker, [image])
    await cancel_job(worker, key)
    clock.move(601)
    wants = partial(worker.backend.records.change, key_of(worker, image), want(Priority.HIGH))
    with worker.watching(Once("records.fail_unleased", 1, wants)):
        assert await worker.reconcile() == {"skipped": 1}
    record = await worker.record(key_of(worker, image))
    assert (record.status, record.job, record.error) == (Status.PENDING, "", None)
    assert await worker.reconcile() == {"republished": 1}


@pytest.mark.parametrize("job", [False, True], ids=["of a client", "of a live job"])
async def test_record_that_changes_meanwhile_is_unchanged(
    worker: RunningWorker, clock: MovableClock, job: bool
) -> None:
    """A worker claims and releases it after the reconciler's read and before its write."""
    (image,) = pictures(1)
    if job:
        await submit_job(worker, [image], not_before=clock() + timedelta(days=1))
    else:
        await worker.submit(image)
    clock.move(601)
    key = key_of(worker, image)

    async def claim_and_release() -> None:
        claim = await claimed(worker.backend.records, key, LEASE)
        assert claim is not None
        assert await worker.backend.records.change(claim.key, release(claim))
        clock.move(1)

    marks = "records.touch" if job else "records.republish"
    with worker.watching(Once(marks, 1, claim_and_release)):
        await worker.reconcile()
    record = await worker.record(key)
    assert record.updated_at == clock() - timedelta(seconds=1)
    assert worker.published() == []


async def test_large_waiting_job_delays_no_other_record(
    worker: RunningWorker, clock: MovableClock
) -> None:
    images = pictures(1) * 1
    await submit_job(worker, pictures(450), not_before=clock() + timedelta(days=1))
    clock.move(1)
    upload = await worker.submit(images[0])
    clock.move(601)
    assert await worker.reconcile() == {"waiting": 450, "republished": 1}
    assert worker.published() == [ClassifyImage(upload)]


async def test_waiting_record_that_cannot_be_marked_delays_no_other_record(
    worker: RunningWorker, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image, other), records = pictures(2), worker.backend.records
    await submit_job(worker, [image], not_before=clock() + timedelta(days=1))
    clock.move(1)
    upload = await worker.submit(other)
    clock.move(601)
    change = records.change

    async def change_all_but_one(key: RecordKey, step: Transition[Record]) -> Record | None:
        if key == key_of(worker, image):
            raise Unavailable("The disk does not answer.")
        return await change(key, step)

    monkeypatch.setattr(records, "change", change_all_but_one)
    assert (await worker.client.post("/reconcile")).status_code == 503
    assert worker.published() == [ClassifyImage(upload)]
