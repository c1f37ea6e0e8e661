"""Running a job: publish the open items, complete the known ones, survive any fault."""

import asyncio
import itertools
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import structlog

from core.domain import channels
from core.domain.jobs import Counts, JobItem, JobKey, JobStatus, new_job, new_job_id
from core.domain.messages import ClassifyImage, Message, Notify, RunJob
from core.domain.priority import Priority
from core.domain.records import (
    ImageKey,
    RecordError,
    Status,
    fail_unleased,
)
from tests.support.clock import MovableClock
from tests.support.faults import FaultAt, Once, watched
from tests.support.jobs import create_job, job_of, states
from tests.support.pictures import sha256
from tests.support.records import delete_image
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


async def test_each_item_of_a_job_gets_a_message(worker: RunningWorker) -> None:
    first, second = pictures(2)
    key = await submit_job(worker, [first, second, first], priority=Priority.LOW)
    assert (await worker.run_job(key)).status_code == 204
    assert worker.published() == [
        ClassifyImage(key_of(worker, first), "", Priority.LOW, key.id, 0),
        ClassifyImage(key_of(worker, second), "", Priority.LOW, key.id, 1),
        ClassifyImage(key_of(worker, first), "", Priority.LOW, key.id, 2),
    ]
    job = await job_of(worker.backend, key)
    assert (job.status, job.counts) == (JobStatus.RUNNING, Counts(3))
    assert job.started_at == worker.context.clock()


async def test_equal_images_of_a_job_are_classified_once(worker: RunningWorker) -> None:
    """P2: the record makes every message but one a duplicate."""
    (image,) = pictures(1)
    key = await submit_job(worker, [image] * 5)
    await worker.run_job(key)
    answers = await asyncio.gather(*(worker.send(message) for message in worker.published()))
    assert [answer.status_code for answer in answers] == [204] * 5
    assert await states(worker.backend, key) == ["succeeded"] * 5
    assert (await worker.record(key_of(worker, image))).attempts == 1
    assert (await job_of(worker.backend, key)).status is JobStatus.COMPLETED


async def test_job_completes_with_its_last_item_and_is_announced(worker: RunningWorker) -> None:
    good, bad = pictures(1)[0], b"not a picture"
    key = await submit_job(worker, [good, bad, good])
    await worker.run_job(key)
    await deliver(worker, *worker.published(channels.IMAGES[Priority.NORMAL]))
    assert await states(worker.backend, key) == ["succeeded", "undecodable_image", "succeeded"]
    job = await job_of(worker.backend, key)
    assert (job.status, job.counts) == (JobStatus.COMPLETED, Counts(3, 2, 1))
    assert job.announced
    assert notifications(worker) == [Notify("public", key.id, "job.completed")]


async def test_repeated_run_publishes_only_open_items(
    worker: RunningWorker, clock: MovableClock
) -> None:
    images = pictures(3)
    key = await submit_job(worker, images)
    await worker.run_job(key)
    await deliver(worker, worker.published()[1])
    before = await job_of(worker.backend, key)
    clock.move(5)
    await worker.run_job(key)
    assert await job_of(worker.backend, key) == before
    again = worker.published()[3:]
    assert [message.position for message in again if isinstance(message, ClassifyImage)] == [0, 2]


async def test_items_with_known_results_complete_at_once(
    worker: RunningWorker, clock: MovableClock
) -> None:
    known, refused, new = pictures(3)
    await finished_record(worker, known, None)
    await finished_record(worker, refused, RecordError("invalid_image", "Too large.", False))
    clock.move(1)
    key = await submit_job(worker, [known, refused, new, known])
    await worker.run_job(key)
    assert await states(worker.backend, key) == ["succeeded", "invalid_image", "open", "succeeded"]
    assert [message.position for message in worker.published()] == [2]  # type: ignore[union-attr]
    assert (await job_of(worker.backend, key)).counts == Counts(4, 2, 1)


async def test_job_of_known_images_completes_at_its_start(worker: RunningWorker) -> None:
    images = pictures(3)
    for image in images:
        await finished_record(worker, image, None)
    key = await submit_job(worker, images)
    await worker.run_job(key)
    job = await job_of(worker.backend, key)
    assert (job.status, job.progress, job.announced) == (JobStatus.COMPLETED, 100, True)
    assert worker.published() == [Notify("public", key.id, "job.completed")]


async def test_retryable_error_from_before_the_job_is_retried(
    worker: RunningWorker, clock: MovableClock
) -> None:
    (image,) = pictures(1)
    record = await finished_record(worker, image, RecordError("image_missing", "Gone.", True))
    clock.move(1)
    key = await submit_job(worker, [image], priority=Priority.LOW)
    await worker.run_job(key)
    found = await worker.record(record)
    assert (found.status, found.job, found.priority) == (Status.PENDING, key.id, Priority.LOW)
    await deliver(worker, *worker.published())
    assert await states(worker.backend, key) == ["succeeded"]


async def test_error_during_the_job_is_the_result_of_the_item(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """The message became a dead letter, and the worker stopped before it completed the item."""
    (image, other) = pictures(2)
    key = await submit_job(worker, [image, other])
    await worker.run_job(key)
    clock.move(1)
    error = RecordError("delivery_exhausted", "No luck.", True)
    assert await worker.backend.records.change(key_of(worker, image), fail_unleased(error))
    await worker.run_job(key)
    assert await states(worker.backend, key) == ["delivery_exhausted", "open"]


async def test_missing_image_fails_its_item(worker: RunningWorker) -> None:
    deleted, kept = pictures(2)
    key = await submit_job(worker, [deleted, kept])
    await delete_image(worker.backend.records, ImageKey("public", sha256(deleted)))
    await worker.run_job(key)
    assert await states(worker.backend, key) == ["image_missing", "open"]


async def test_image_deleted_while_its_job_is_created_leaves_nothing_behind(
    worker: RunningWorker,
) -> None:
    """P5: the deletion ends between the storage of the bytes and the creation of the record."""
    image, kept = pictures(2)
    deleted = ImageKey("public", sha256(image))

    async def delete() -> None:
        await worker.backend.blobs.delete(deleted.blob_name)
        await delete_image(worker.backend.records, deleted)

    creating = watched(worker.backend, Once("records.create", 1, delete))
    key = await create_job(creating, worker.model, [image, kept], worker.context.clock())
    assert await worker.backend.records.of_image(*deleted)
    await worker.run_job(key)
    for message in worker.published():
        await deliver(worker, message)
    assert await states(worker.backend, key) == ["image_missing", "succeeded"]
    assert not await worker.backend.records.of_image(*deleted)


async def test_image_deleted_before_its_message_arrives_fails_its_item(
    worker: RunningWorker,
) -> None:
    key = await submit_job(worker, pictures(1))
    await worker.run_job(key)
    (message,) = worker.published()
    assert isinstance(message, ClassifyImage)
    await delete_image(worker.backend.records, message.key.image)
    await deliver(worker, message)
    assert await states(worker.backend, key) == ["image_missing"]
    assert (await job_of(worker.backend, key)).status is JobStatus.COMPLETED


async def test_job_that_may_not_start_stays_pending(
    worker: RunningWorker, clock: MovableClock
) -> None:
    soon = clock() + timedelta(seconds=60)
    unsealed = JobKey("public", new_job_id())
    await worker.backend.jobs.create(new_job(unsealed, "", worker.model, 1, clock()))
    await worker.backend.jobs.add_items(unsealed, [JobItem(0, "ab" * 32)])
    early = await submit_job(worker, pictures(1), not_before=soon)
    late = await submit_job(worker, pictures(1), deadline=clock())
    stopped = await submit_job(worker, pictures(1))
    await cancel_job(worker, stopped)
    before = worker.published()
    for key in (unsealed, early, late, stopped, JobKey("public", new_job_id())):
        assert (await worker.run_job(key)).status_code == 204
    assert worker.published() == before
    for key in (unsealed, early, late):
        assert (await job_of(worker.backend, key)).status is JobStatus.PENDING


async def test_cancellation_takes_effect_between_two_pages(worker: RunningWorker) -> None:
    key = await submit_job(worker, pictures(250))
    with worker.watching(Once("jobs.items", 3, partial(cancel_job, worker, key))):
        await worker.run_job(key)
    # The cancellation came after the third page was read.
    assert len(worker.published(channels.IMAGES[Priority.NORMAL])) == 250
    other = await submit_job(worker, pictures(250))
    with worker.watching(Once("jobs.items", 2, partial(cancel_job, worker, other))):
        await worker.run_job(other)
    assert len(worker.published(channels.IMAGES[Priority.NORMAL])) == 250 + 200
    assert (await job_of(worker.backend, other)).status is JobStatus.CANCELLED


async def test_deadline_takes_effect_between_two_pages(
    worker: RunningWorker, clock: MovableClock
) -> None:
    async def pass_deadline() -> None:
        clock.move(60)

    key = await submit_job(worker, pictures(250), deadline=clock() + timedelta(seconds=60))
    with worker.watching(Once("jobs.items", 2, pass_deadline)):
        await worker.run_job(key)
    assert len(worker.published(channels.IMAGES[Priority.NORMAL])) == 200
    assert (await job_of(worker.backend, key)).status is JobStatus.RUNNING


async def test_log_lines_and_metrics_of_a_job(worker: RunningWorker) -> None:
    key = await submit_job(worker, [*pictures(1), b"broken"])
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as lines:
        await worker.run_job(key)
        await deliver(worker, *worker.published())
    assert {line["job"] for line in lines} == {key.id}
    told = {(line["event"], line.get("position")) for line in lines}
    assert {("job started", None), ("classified", 0), ("image refused", 1)} <= told
    series = (await worker.client.get("/metrics")).text
    assert 'glimpse_jobs_ended_total{status="completed"} 1.0' in series
    assert 'glimpse_job_items_total{outcome="succeeded"} 1.0' in series
    assert 'glimpse_job_items_total{outcome="failed"} 1.0' in series


# --- Faults and crashes ---------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_job_completes_after_a_fault_in_any_call(
    worker: RunningWorker, clock: MovableClock, after: bool
) -> None:
    """Each call of a port fails once, before or after its effect, and the queue delivers again."""
    expected = {
        "jobs.start", "jobs.items", "records.get_many", "publisher.publish", "jobs.complete_item",
        "jobs.refresh_counts", "records.claim", "jobs.get", "records.complete", "records.fail",
    }  # fmt: skip
    failed: set[str] = set()
    # Concurrent calls change their order between jobs, so one round may miss a call.
    for _ in range(5):
        failed |= await _calls_that_failed_once(worker, clock, after)
        if failed >= expected:
            break
    assert failed >= expected


async def _calls_that_failed_once(
    worker: RunningWorker, clock: MovableClock, after: bool
) -> set[str]:
    """Run a job for each number of a call, and let that call fail."""
    failed = set()
    for number in itertools.count(1):
        new, known, bad = [*pictures(2), b"bad " + secrets.token_bytes(8)]
        await finished_record(worker, known, None)
        key = await submit_job(worker, [new, known, bad, new])
        fault = FaultAt(number, after)
        with worker.watching(fault):
            await deliver_until_acknowledged(worker, clock, RunJob(key.tenant, key.id))
        failed.add(fault.failed)
        # The scheduler announces the end if the worker could not.
        clock.move(worker.context.job_policy.announce_after + 1)
        await worker.schedule()
        assert await states(worker.backend, key) == [
            "succeeded", "succeeded", "undecodable_image", "succeeded",
        ]  # fmt: skip
        job = await job_of(worker.backend, key)
        assert (job.status, job.counts) == (JobStatus.COMPLETED, Counts(4, 3, 1)), fault.failed
        assert job.announced
        assert Notify("public", key.id, "job.completed") in notifications(worker)
        assert (await worker.record(key_of(worker, new))).status is Status.SUCCESS
        if not fault.failed:
            break
    return failed


async def deliver_until_acknowledged(
    worker: RunningWorker, clock: MovableClock, message: Message
) -> None:
    """Deliver the message, and those that it causes, until the worker acknowledges them all."""
    messages, channel = [message], channels.IMAGES[Priority.NORMAL]
    taken = len(worker.published(channel))
    attempts: Counter[str] = Counter()
    while messages:
        message = messages.pop(0)
        answer = await worker.send(message)
        if answer.status_code != 204:
            assert answer.status_code == 503
            attempts[str(message)] += 1
            assert attempts[str(message)] < 3
            messages.append(message)
            clock.move(31)  # the lease of a claim whose response was lost expires
        messages += worker.published(channel)[taken:]
        taken = len(worker.published(channel))


async def test_concurrent_runs_and_deliveries_complete_the_job_once(worker: RunningWorker) -> None:
    images = pictures(20)
    key = await submit_job(worker, images)
    await asyncio.gather(*(worker.run_job(key) for _ in range(3)))
    messages = worker.published()
    assert {message.position for message in messages if isinstance(message, ClassifyImage)} == set(
        range(20)
    )
    answers = await asyncio.gather(*(worker.send(message) for message in messages))
    assert {answer.status_code for answer in answers} == {204}
    job = await job_of(worker.backend, key)
    assert (job.status, job.counts) == (JobStatus.COMPLETED, Counts(20, 20))
    assert len(notifications(worker)) == 1
    for image in images:
        assert (await worker.record(key_of(worker, image))).attempts == 1
