"""Classification of the images of jobs: cancellation, shared images, priorities."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import structlog

from core.domain import channels
from core.domain.jobs import JobStatus
from core.domain.messages import Notify
from core.domain.priority import Priority
from core.domain.records import (
    RecordError,
    Status,
    fail_unleased,
    retry,
    want,
)
from core.errors import Unavailable
from tests.support.clock import MovableClock
from tests.support.faults import Once
from tests.support.jobs import job_of, states
from tests.support.worker import (
    RunningWorker,
)
from tests.support.worker_jobs import (
    cancel_job,
    deliver,
    finished_record,
    key_of,
    notifications,
    pictures,
    running_job_worker,
    submit_job,
)


@pytest.fixture
async def worker(
    tmp_path: Path, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunningWorker]:
    async with running_job_worker(tmp_path, clock, monkeypatch) as running:
        yield running


async def test_images_of_a_cancelled_job_are_not_classified(worker: RunningWorker) -> None:
    images = pictures(3)
    key = await submit_job(worker, images)
    await worker.run_job(key)
    messages = worker.published()
    await deliver(worker, messages[0])
    job = await cancel_job(worker, key)
    await deliver(worker, *messages[1:], messages[1])
    records = [await worker.record(key_of(worker, image)) for image in images]
    assert [record.status.value for record in records] == ["success", "error", "error"]
    assert [r.error and (r.error.code, r.error.retryable) for r in records[1:]] == [
        ("cancelled", True)
    ] * 2
    assert await states(worker.backend, key) == ["succeeded", "open", "open"]
    after = await job_of(worker.backend, key)
    assert (after.status, after.cancelled_items) == (JobStatus.CANCELLED, 2)
    assert after.revision == job.revision
    assert notifications(worker) == [Notify("public", key.id, "job.cancelled")]
    # A new upload retries the image.
    assert await worker.backend.records.change(records[1].key, retry())
    assert (await worker.push(records[1].key)).status_code == 204
    assert (await worker.record(records[1].key)).status is Status.SUCCESS


async def test_job_past_its_deadline_counts_as_cancelled(
    worker: RunningWorker, clock: MovableClock
) -> None:
    images = pictures(2)
    key = await submit_job(worker, images, deadline=clock() + timedelta(seconds=60))
    await worker.run_job(key)
    first, second = worker.published()
    clock.move(59)
    await deliver(worker, first)
    clock.move(1)
    await deliver(worker, second)
    assert await states(worker.backend, key) == ["succeeded", "open"]
    error = (await worker.record(key_of(worker, images[1]))).error
    assert error is not None
    assert error.code == "cancelled"


async def test_image_of_a_cancelled_job_is_classified_for_a_client(
    worker: RunningWorker,
) -> None:
    (image,) = pictures(1)
    key = await submit_job(worker, [image])
    await worker.run_job(key)
    (message,) = worker.published()
    assert await worker.backend.records.change(key_of(worker, image), want(Priority.HIGH))
    await cancel_job(worker, key)
    await deliver(worker, message)
    assert (await worker.record(key_of(worker, image))).status is Status.SUCCESS


async def test_client_that_asks_just_before_the_cancellation_gets_a_result(
    worker: RunningWorker,
) -> None:
    """The client asks after the worker has read the job and before it fails the record."""
    (image,) = pictures(1)
    key = await submit_job(worker, [image])
    await worker.run_job(key)
    (message,) = worker.published()
    await cancel_job(worker, key)
    wants = partial(worker.backend.records.change, key_of(worker, image), want(Priority.HIGH))
    with worker.watching(Once("records.fail", 1, wants)):
        await deliver(worker, message)
    assert (await worker.record(key_of(worker, image))).status is Status.SUCCESS


async def test_image_in_progress_at_the_cancellation_still_counts(worker: RunningWorker) -> None:
    key = await submit_job(worker, pictures(2))
    await worker.run_job(key)
    first, second = worker.published()
    # The worker has classified the image, long after it read the job.
    stop = Once("records.complete", 1, partial(cancel_job, worker, key))
    with worker.watching(stop):
        await deliver(worker, first)
    assert stop.left == 0
    await deliver(worker, second)
    assert await states(worker.backend, key) == ["succeeded", "open"]
    job = await job_of(worker.backend, key)
    assert job.status is JobStatus.CANCELLED


async def test_two_jobs_share_an_image(worker: RunningWorker) -> None:
    (image,) = pictures(1)
    one, other = [await submit_job(worker, [image]) for _ in range(2)]
    await worker.run_job(one)
    await worker.run_job(other)
    assert (await worker.record(key_of(worker, image))).job == ""
    first, second = worker.published()
    await cancel_job(worker, one)
    await deliver(worker, first, second)
    assert (await worker.record(key_of(worker, image))).attempts == 1
    assert await states(worker.backend, other) == ["succeeded"]
    assert (await job_of(worker.backend, other)).status is JobStatus.COMPLETED


async def test_jobs_cancelled_repeatedly_classify_nothing(
    worker: RunningWorker,
) -> None:
    """Only the second job requests the images that the first one left."""
    images = pictures(3)
    keys = []
    for _ in range(3):
        key = await submit_job(worker, images)
        await worker.run_job(key)
        await cancel_job(worker, key)
        keys.append(key)
    await deliver(worker, *worker.published(channels.IMAGES[Priority.NORMAL]))
    for image in images:
        assert (await worker.record(key_of(worker, image))).status is Status.ERROR
    assert [await states(worker.backend, key) for key in keys] == [["open"] * 3] * 3


async def test_job_retries_an_image_that_another_cancelled_job_failed(
    worker: RunningWorker,
) -> None:
    """Before its message arrives, another job alone retries the image and is cancelled."""
    (image,) = pictures(1)
    record = key_of(worker, image)
    key = await submit_job(worker, [image])
    await worker.run_job(key)
    (message,) = worker.published()
    assert await worker.backend.records.change(
        record, fail_unleased(RecordError("expired", "Old.", True))
    )
    other = await submit_job(worker, [image])
    assert await worker.backend.records.change(record, retry(Priority.NORMAL, other.id))
    await cancel_job(worker, other)
    await deliver(worker, message)
    assert await states(worker.backend, key) == ["succeeded"]


async def test_late_message_of_a_client_classifies_nothing_for_a_cancelled_job(
    worker: RunningWorker,
) -> None:
    (image,) = pictures(1)
    record = await finished_record(worker, image, RecordError("expired", "Old.", True))
    key = await submit_job(worker, [image])
    assert await worker.backend.records.change(record, retry(Priority.NORMAL, key.id))
    await cancel_job(worker, key)
    assert (await worker.push(record)).status_code == 204
    assert (await worker.record(record)).status is Status.ERROR


async def test_next_delivery_only_completes_the_item(
    worker: RunningWorker,
) -> None:
    (image, _) = images = pictures(2)
    key = await submit_job(worker, images)
    await worker.run_job(key)
    message = worker.published()[0]

    async def fail() -> None:
        raise Unavailable("A fault was injected.")

    with worker.watching(Once("jobs.complete_item", 1, fail)):
        assert (await worker.send(message)).status_code == 503
    assert await states(worker.backend, key) == ["open", "open"]
    before = await worker.record(key_of(worker, image))
    assert before.status is Status.SUCCESS
    await deliver(worker, message)
    assert await worker.record(key_of(worker, image)) == before
    assert await states(worker.backend, key) == ["succeeded", "open"]


async def test_most_urgent_message_gets_the_next_slot(worker: RunningWorker) -> None:
    """Pub/Sub pushes the messages of every priority at the same time."""
    *images, urgent = pictures(101)
    key = await submit_job(worker, images, priority=Priority.LOW)
    await worker.run_job(key)
    high = await worker.submit(urgent)
    low = worker.published(channels.IMAGES[Priority.LOW])
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as lines:
        pushed = [asyncio.create_task(worker.send(message)) for message in low]
        await asyncio.sleep(0)
        answers = await asyncio.gather(*pushed, worker.push(high))
    assert {answer.status_code for answer in answers} == {204}
    order = [line["image_hash"] for line in lines if line["event"] == "classified"]
    assert len(order) == 101
    assert order.index(high.image_hash) <= 4
