"""Jobs on the worker's side: begun, brought on, cancelled and ended, whatever fails on the way."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import structlog

from core.clock import rfc3339
from core.domain import channels, jobs
from core.domain.jobs import Counts, ItemState, Job, JobItem, JobKey, JobStatus, new_job, new_job_id
from core.domain.messages import ClassifyImage, Message, Notify, RunJob
from core.domain.policy import JobPolicy
from core.domain.priority import Priority
from core.domain.records import (
    Annotation,
    Record,
    RecordError,
    RecordKey,
    Status,
    complete,
    fail,
    fail_unleased,
    new_record,
    release,
    retry,
    want,
)
from core.domain.transitions import Transition
from core.errors import Unavailable
from core.services.job_completion import cancel
from core.settings import Settings
from tests.support.clock import MovableClock
from tests.support.faults import FaultAt, Once, watched
from tests.support.jobs import create_job, job_of, states
from tests.support.pictures import picture, sha256
from tests.support.records import claimed
from tests.support.worker import (
    RunningWorker,
    body,
    running_worker,
    settings_in,
)

LEASE = timedelta(seconds=30)
WHITE = picture(7, (250, 250, 250))
_numbers = itertools.count(10_000)


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
async def worker(
    tmp_path: Path, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunningWorker]:
    monkeypatch.setattr("worker.tasks.classify_image.DUPLICATE_WAIT_SECONDS", 0.2)
    always_counted = property(lambda self: JobPolicy(refresh_interval=0))
    monkeypatch.setattr(Settings, "jobs", always_counted)
    async with running_worker(settings_in(tmp_path, worker_concurrency=1), clock) as running:
        yield running


def pictures(count: int) -> list[bytes]:
    """Such as no test had before."""
    return [picture(next(_numbers), size=(16, 16)) for _ in range(count)]


async def a_job(worker: RunningWorker, images: Sequence[bytes], **how: object) -> JobKey:
    clock = worker.context.clock
    return await create_job(worker.backend, worker.model, images, clock(), **how)  # type: ignore[arg-type]


def key_of(worker: RunningWorker, image: bytes) -> RecordKey:
    return RecordKey("public", sha256(image), worker.model)


async def cancelled(worker: RunningWorker, key: JobKey) -> Job:
    job = await cancel(worker.backend, key, worker.context.job_policy)
    assert job is not None
    return job


async def ended(worker: RunningWorker, image: bytes, error: RecordError | None) -> RecordKey:
    """A record of this image that ended before."""
    key = await worker.submit(image)
    claim = await claimed(worker.backend.records, key, LEASE)
    assert claim is not None
    if error is None:
        assert await worker.backend.records.change(
            claim.key, complete(claim, [Annotation(1, "by hand", 1.0)])
        )
    else:
        assert await worker.backend.records.change(claim.key, fail(claim, error))
    return key


async def deliver(worker: RunningWorker, *messages: Message) -> None:
    for message in messages:
        answer = await worker.send(message)
        assert answer.status_code == 204, answer.text


def notices(worker: RunningWorker) -> list[Message]:
    return worker.published(channels.NOTIFICATIONS)


# --- Bringing a job on ----------------------------------------------------------------------------


async def test_each_image_of_a_job_gets_one_message(worker: RunningWorker) -> None:
    first, second = pictures(2)
    key = await a_job(worker, [first, second, first, first], priority=Priority.LOW)
    assert (await worker.run_job(key)).status_code == 204
    assert worker.published() == [
        ClassifyImage(key_of(worker, first), "", Priority.LOW, key.id, 0),
        ClassifyImage(key_of(worker, second), "", Priority.LOW, key.id, 1),
    ]
    job = await job_of(worker.backend, key)
    assert (job.status, job.counts) == (JobStatus.RUNNING, Counts(4))
    assert job.started_at == worker.context.clock()


async def test_a_job_ends_with_its_last_item_and_that_is_announced(worker: RunningWorker) -> None:
    good, bad = pictures(1)[0], b"not a picture"
    key = await a_job(worker, [good, bad, good])
    await worker.run_job(key)
    await deliver(worker, *worker.published(channels.IMAGES[Priority.NORMAL]))
    assert await states(worker.backend, key) == ["succeeded", "undecodable_image", "succeeded"]
    job = await job_of(worker.backend, key)
    assert (job.status, job.counts) == (JobStatus.COMPLETED, Counts(3, 2, 1))
    assert job.announced
    assert notices(worker) == [Notify("public", key.id, "job.completed")]


async def test_a_twin_of_an_item_that_has_failed_goes_by_itself(worker: RunningWorker) -> None:
    """As where two requests with the same key each stored a part of the items."""
    image = pictures(1)[0]
    await worker.backend.blobs.put(key_of(worker, image).blob_name, image, "image/jpeg")
    await worker.backend.records.create(new_record(key_of(worker, image), worker.context.clock()))
    key = JobKey("public", new_job_id())
    await worker.backend.jobs.create(new_job(key, "", worker.model, 2, worker.context.clock()))
    error = RecordError("not_uploaded", "It was not there.", True)
    failed = JobItem(0, sha256(image), state=ItemState.FAILED, error=error)
    await worker.backend.jobs.add_items(key, [failed, JobItem(1, sha256(image), twin_of=0)])
    await worker.backend.jobs.change(key, jobs.seal())
    await worker.run_job(key)
    await deliver(worker, *worker.published())
    job = await job_of(worker.backend, key)
    assert (job.status, job.counts) == (JobStatus.COMPLETED, Counts(2, 1, 1))


async def test_a_repeated_start_publishes_what_is_open_and_changes_nothing(
    worker: RunningWorker, clock: MovableClock
) -> None:
    images = pictures(3)
    key = await a_job(worker, images)
    await worker.run_job(key)
    await deliver(worker, worker.published()[1])
    before = await job_of(worker.backend, key)
    clock.move(5)
    await worker.run_job(key)
    assert await job_of(worker.backend, key) == before
    again = worker.published()[3:]
    assert [message.position for message in again if isinstance(message, ClassifyImage)] == [0, 2]


async def test_what_is_known_is_settled_at_once(worker: RunningWorker) -> None:
    known, refused, new = pictures(3)
    await ended(worker, known, None)
    await ended(worker, refused, RecordError("invalid_image", "Too large.", False))
    key = await a_job(worker, [known, refused, new, known])
    await worker.run_job(key)
    assert await states(worker.backend, key) == ["succeeded", "invalid_image", "open", "succeeded"]
    assert [message.position for message in worker.published()] == [2]  # type: ignore[union-attr]
    assert (await job_of(worker.backend, key)).counts == Counts(4, 2, 1)


async def test_a_job_of_known_images_ends_as_it_begins(worker: RunningWorker) -> None:
    images = pictures(3)
    for image in images:
        await ended(worker, image, None)
    key = await a_job(worker, images)
    await worker.run_job(key)
    job = await job_of(worker.backend, key)
    assert (job.status, job.progress, job.announced) == (JobStatus.COMPLETED, 100, True)
    assert worker.published() == [Notify("public", key.id, "job.completed")]


async def test_a_retryable_error_of_before_is_tried_again(
    worker: RunningWorker, clock: MovableClock
) -> None:
    (image,) = pictures(1)
    record = await ended(worker, image, RecordError("image_missing", "Gone.", True))
    clock.move(1)
    key = await a_job(worker, [image], priority=Priority.LOW)
    await worker.run_job(key)
    found = await worker.record(record)
    assert (found.status, found.job, found.priority) == (Status.PENDING, key.id, Priority.LOW)
    await deliver(worker, *worker.published())
    assert await states(worker.backend, key) == ["succeeded"]


async def test_an_error_that_came_while_it_ran_is_the_item_s(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """Its message died, and the worker before it had settled the item."""
    (image, other) = pictures(2)
    key = await a_job(worker, [image, other])
    await worker.run_job(key)
    clock.move(1)
    error = RecordError("delivery_exhausted", "No luck.", True)
    assert await worker.backend.records.change(key_of(worker, image), fail_unleased(error))
    await worker.run_job(key)
    assert await states(worker.backend, key) == ["delivery_exhausted", "open"]


async def test_an_image_that_is_not_stored_fails_its_item(worker: RunningWorker) -> None:
    deleted, kept = pictures(2)
    key = await a_job(worker, [deleted, kept])
    await worker.backend.records.delete_image("public", sha256(deleted))
    await worker.run_job(key)
    assert await states(worker.backend, key) == ["image_missing", "open"]


async def test_an_image_that_is_deleted_while_its_message_waits_fails_its_item(
    worker: RunningWorker,
) -> None:
    key = await a_job(worker, pictures(1))
    await worker.run_job(key)
    (message,) = worker.published()
    assert isinstance(message, ClassifyImage)
    await worker.backend.records.delete_image("public", message.key.image_hash)
    await deliver(worker, message)
    assert await states(worker.backend, key) == ["image_missing"]
    assert (await job_of(worker.backend, key)).status is JobStatus.COMPLETED


async def test_what_may_not_begin_does_not(worker: RunningWorker, clock: MovableClock) -> None:
    soon = clock() + timedelta(seconds=60)
    unsealed = JobKey("public", new_job_id())
    await worker.backend.jobs.create(new_job(unsealed, "", worker.model, 1, clock()))
    await worker.backend.jobs.add_items(unsealed, [JobItem(0, "ab" * 32)])
    early = await a_job(worker, pictures(1), not_before=soon)
    late = await a_job(worker, pictures(1), deadline=clock())
    stopped = await a_job(worker, pictures(1))
    await cancelled(worker, stopped)
    before = worker.published()
    for key in (unsealed, early, late, stopped, JobKey("public", new_job_id())):
        assert (await worker.run_job(key)).status_code == 204
    assert worker.published() == before
    for key in (unsealed, early, late):
        assert (await job_of(worker.backend, key)).status is JobStatus.PENDING


async def test_a_message_that_starts_no_job_is_refused(worker: RunningWorker) -> None:
    key = key_of(worker, WHITE)
    for attributes in (ClassifyImage(key).attributes(), {"kind": "run_job", "tenant": "public"}):
        answer = await worker.client.post("/jobs", content=body(attributes=attributes))
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_envelope")


async def test_a_cancellation_is_noticed_between_two_pages(worker: RunningWorker) -> None:
    key = await a_job(worker, pictures(250))
    with worker.watching(Once("jobs.items", 3, partial(cancelled, worker, key))):
        await worker.run_job(key)
    # The third page was on its way.
    assert len(worker.published(channels.IMAGES[Priority.NORMAL])) == 250
    other = await a_job(worker, pictures(250))
    with worker.watching(Once("jobs.items", 2, partial(cancelled, worker, other))):
        await worker.run_job(other)
    assert len(worker.published(channels.IMAGES[Priority.NORMAL])) == 250 + 200
    assert (await job_of(worker.backend, other)).status is JobStatus.CANCELLED


async def test_lines_and_counts_name_the_job(worker: RunningWorker) -> None:
    key = await a_job(worker, [*pictures(1), b"broken"])
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


# --- Cancellation ---------------------------------------------------------------------------------


async def test_nothing_of_a_cancelled_job_runs(worker: RunningWorker) -> None:
    images = pictures(3)
    key = await a_job(worker, images)
    await worker.run_job(key)
    messages = worker.published()
    await deliver(worker, messages[0])
    job = await cancelled(worker, key)
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
    assert notices(worker) == [Notify("public", key.id, "job.cancelled")]
    # Uploading it again tries again.
    assert await worker.backend.records.change(records[1].key, retry())
    assert (await worker.push(records[1].key)).status_code == 204
    assert (await worker.record(records[1].key)).status is Status.SUCCESS


async def test_a_job_past_its_deadline_is_treated_as_cancelled(
    worker: RunningWorker, clock: MovableClock
) -> None:
    images = pictures(2)
    key = await a_job(worker, images, deadline=clock() + timedelta(seconds=60))
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


async def test_an_image_that_somebody_else_wants_is_classified_all_the_same(
    worker: RunningWorker,
) -> None:
    (image,) = pictures(1)
    key = await a_job(worker, [image])
    await worker.run_job(key)
    (message,) = worker.published()
    assert await worker.backend.records.change(key_of(worker, image), want(Priority.HIGH))
    await cancelled(worker, key)
    await deliver(worker, message)
    assert (await worker.record(key_of(worker, image))).status is Status.SUCCESS


async def test_who_wants_it_in_the_last_moment_gets_it(worker: RunningWorker) -> None:
    """Between the look at the job and the end of the record."""
    (image,) = pictures(1)
    key = await a_job(worker, [image])
    await worker.run_job(key)
    (message,) = worker.published()
    await cancelled(worker, key)
    wants = partial(worker.backend.records.change, key_of(worker, image), want(Priority.HIGH))
    with worker.watching(Once("records.fail", 1, wants)):
        await deliver(worker, message)
    assert (await worker.record(key_of(worker, image))).status is Status.SUCCESS


async def test_what_was_in_hand_when_it_was_cancelled_still_counts(worker: RunningWorker) -> None:
    key = await a_job(worker, pictures(2))
    await worker.run_job(key)
    first, second = worker.published()
    # It is classified by then: long past the look at the job.
    stop = Once("records.complete", 1, partial(cancelled, worker, key))
    with worker.watching(stop):
        await deliver(worker, first)
    assert stop.left == 0
    await deliver(worker, second)
    assert await states(worker.backend, key) == ["succeeded", "open"]
    job = await job_of(worker.backend, key)
    assert job.status is JobStatus.CANCELLED


async def test_two_jobs_share_an_image(worker: RunningWorker) -> None:
    (image,) = pictures(1)
    one, other = [await a_job(worker, [image]) for _ in range(2)]
    await worker.run_job(one)
    await worker.run_job(other)
    assert (await worker.record(key_of(worker, image))).job == ""
    first, second = worker.published()
    await cancelled(worker, one)
    await deliver(worker, first, second)
    assert (await worker.record(key_of(worker, image))).attempts == 1
    assert await states(worker.backend, other) == ["succeeded"]
    assert (await job_of(worker.backend, other)).status is JobStatus.COMPLETED


async def test_a_job_cancelled_created_again_and_cancelled_again_runs_nothing(
    worker: RunningWorker,
) -> None:
    """The images that the first one left behind belong to the second alone."""
    images = pictures(3)
    keys = []
    for _ in range(3):
        key = await a_job(worker, images)
        await worker.run_job(key)
        await cancelled(worker, key)
        keys.append(key)
    await deliver(worker, *worker.published(channels.IMAGES[Priority.NORMAL]))
    for image in images:
        assert (await worker.record(key_of(worker, image))).status is Status.ERROR
    assert [await states(worker.backend, key) for key in keys] == [["open"] * 3] * 3


async def test_a_job_whose_image_another_s_end_took_along_gets_it_back(
    worker: RunningWorker,
) -> None:
    """Its message waits while another job tries the image again, alone, and is cancelled."""
    (image,) = pictures(1)
    record = key_of(worker, image)
    key = await a_job(worker, [image])
    await worker.run_job(key)
    (message,) = worker.published()
    assert await worker.backend.records.change(
        record, fail_unleased(RecordError("expired", "Old.", True))
    )
    other = await a_job(worker, [image])
    assert await worker.backend.records.change(record, retry(Priority.NORMAL, other.id))
    await cancelled(worker, other)
    await deliver(worker, message)
    assert await states(worker.backend, key) == ["succeeded"]


async def test_a_client_s_old_message_runs_nothing_for_a_cancelled_job(
    worker: RunningWorker,
) -> None:
    (image,) = pictures(1)
    record = await ended(worker, image, RecordError("expired", "Old.", True))
    key = await a_job(worker, [image])
    assert await worker.backend.records.change(record, retry(Priority.NORMAL, key.id))
    await cancelled(worker, key)
    assert (await worker.push(record)).status_code == 204
    assert (await worker.record(record)).status is Status.ERROR


# --- Faults and crashes ---------------------------------------------------------------------------


async def test_a_settling_that_fails_is_all_that_the_next_delivery_does(
    worker: RunningWorker,
) -> None:
    (image, _) = images = pictures(2)
    key = await a_job(worker, images)
    await worker.run_job(key)
    message = worker.published()[0]

    async def fail() -> None:
        raise Unavailable("A fault was injected.")

    with worker.watching(Once("jobs.settle", 1, fail)):
        assert (await worker.send(message)).status_code == 503
    assert await states(worker.backend, key) == ["open", "open"]
    before = await worker.record(key_of(worker, image))
    assert before.status is Status.SUCCESS
    await deliver(worker, message)
    assert await worker.record(key_of(worker, image)) == before
    assert await states(worker.backend, key) == ["succeeded", "open"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_job_survives_a_fault_of_any_call(
    worker: RunningWorker, clock: MovableClock, after: bool
) -> None:
    """Every call of a port fails once, on the whole way of a job, and its message comes again."""
    failed = set()
    for number in itertools.count(1):
        new, known, bad = [*pictures(2), b"%d" % next(_numbers)]
        await ended(worker, known, None)
        key = await a_job(worker, [new, known, bad, new])
        fault = FaultAt(number, after)
        with worker.watching(fault):
            await _delivered(worker, clock, RunJob(key.tenant, key.id))
        failed.add(fault.failed)
        # Whatever was not announced then is by the scheduler.
        clock.move(worker.context.job_policy.announce_after + 1)
        await worker.schedule()
        assert await states(worker.backend, key) == [
            "succeeded", "succeeded", "undecodable_image", "succeeded",
        ]  # fmt: skip
        job = await job_of(worker.backend, key)
        assert (job.status, job.counts) == (JobStatus.COMPLETED, Counts(4, 3, 1)), fault.failed
        assert job.announced
        assert Notify("public", key.id, "job.completed") in notices(worker)
        assert (await worker.record(key_of(worker, new))).status is Status.SUCCESS
        if not fault.failed:
            break
    assert failed >= {
        "jobs.start", "jobs.items", "records.get_many", "publisher.publish", "jobs.settle",
        "jobs.refresh", "records.claim", "jobs.get", "records.complete", "records.fail",
    }  # fmt: skip


async def _delivered(worker: RunningWorker, clock: MovableClock, message: Message) -> None:
    """Deliver it, and what is published for the job by that, until all is acknowledged."""
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
            clock.move(31)  # a claim whose answer was lost runs out
        messages += worker.published(channel)[taken:]
        taken = len(worker.published(channel))


async def test_concurrent_starts_and_deliveries_end_the_job_once(worker: RunningWorker) -> None:
    images = pictures(20)
    key = await a_job(worker, images)
    await asyncio.gather(*(worker.run_job(key) for _ in range(3)))
    messages = worker.published()
    assert {message.position for message in messages if isinstance(message, ClassifyImage)} == set(
        range(20)
    )
    answers = await asyncio.gather(*(worker.send(message) for message in messages))
    assert {answer.status_code for answer in answers} == {204}
    job = await job_of(worker.backend, key)
    assert (job.status, job.counts) == (JobStatus.COMPLETED, Counts(20, 20))
    assert len(notices(worker)) == 1
    for image in images:
        assert (await worker.record(key_of(worker, image))).attempts == 1


# --- Priorities -----------------------------------------------------------------------------------


async def test_the_most_urgent_message_is_let_in_first(worker: RunningWorker) -> None:
    """Pub/Sub pushes all priorities at once."""
    images, urgent = pictures(100), picture(next(_numbers))
    key = await a_job(worker, images, priority=Priority.LOW)
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


# --- Dead letters ---------------------------------------------------------------------------------


async def test_a_dead_item_fails_with_the_error_of_its_record(worker: RunningWorker) -> None:
    image, other = pictures(2)
    key = await a_job(worker, [image, other, image])
    await worker.run_job(key)
    message = worker.published()[0]
    for _ in range(2):
        answer = await worker.dead_letter(message, reason="HTTP 503")
        assert answer.status_code == 204
    assert await states(worker.backend, key) == ["delivery_exhausted", "open", "delivery_exhausted"]
    item = (await worker.backend.jobs.items(key, 1))[0]
    assert item.error == (await worker.record(key_of(worker, image))).error
    (letter,) = await worker.letters()
    assert letter.attributes["job"] == key.id


async def test_a_dead_message_of_a_finished_image_settles_its_item(worker: RunningWorker) -> None:
    image, gone = pictures(2)
    key = await a_job(worker, [image, gone])
    await worker.run_job(key)
    first, second = worker.published()
    assert (await worker.push(key_of(worker, image))).status_code == 204  # a client's own message
    await worker.backend.records.delete_image("public", sha256(gone))
    for message in (first, second):
        assert (await worker.dead_letter(message)).status_code == 204
    assert await states(worker.backend, key) == ["succeeded", "not_found"]
    assert (await job_of(worker.backend, key)).status is JobStatus.COMPLETED


async def test_a_job_that_could_not_be_run_fails(worker: RunningWorker) -> None:
    key = await a_job(worker, pictures(1))
    message = RunJob(key.tenant, key.id)
    for _ in range(2):
        answer = await worker.dead_letter(message, reason="HTTP 503")
        assert answer.status_code == 204
    job = await job_of(worker.backend, key)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "delivery_exhausted"
    assert job.error.detail == "The job was not run after 10 deliveries. Last failure: HTTP 503"
    assert notices(worker) == [Notify("public", key.id, "job.failed")]
    (letter,) = await worker.letters()
    assert letter.attributes == message.attributes()
    assert letter.resolved_at is None


async def test_a_late_letter_of_a_job_that_ended_changes_nothing(worker: RunningWorker) -> None:
    key = await a_job(worker, pictures(1))
    before = await cancelled(worker, key)
    assert (await worker.dead_letter(RunJob(key.tenant, key.id))).status_code == 204
    assert (await job_of(worker.backend, key)).status is before.status
    assert await worker.letters() == []


async def test_a_late_letter_of_a_job_that_was_begun_since_changes_nothing(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """The scheduler asked for the job again before the letter came."""
    key = await a_job(worker, pictures(1))
    died = rfc3339(clock())
    clock.move(31)
    assert await worker.schedule() == {"run": 1}
    await worker.run_job(key)
    before = await job_of(worker.backend, key)
    letter = await worker.dead_letter(RunJob(key.tenant, key.id), publishTime=died)
    assert letter.status_code == 204
    assert await job_of(worker.backend, key) == before
    assert await worker.letters() == []
    # One that died while the job ran is of an attempt that could not bring it on.
    assert (await worker.dead_letter(RunJob(key.tenant, key.id))).status_code == 204
    assert (await job_of(worker.backend, key)).status is JobStatus.FAILED


@pytest.mark.parametrize("outcome", ["cancelled", "begun again"])
async def test_the_letter_of_a_job_that_moved_on_is_resolved(
    worker: RunningWorker, clock: MovableClock, outcome: str
) -> None:
    """A first notice kept the letter and then failed; the second finds the job elsewhere."""
    key = await a_job(worker, pictures(1))
    message, died = RunJob(key.tenant, key.id), rfc3339(clock())

    async def fail() -> None:
        raise Unavailable("A fault was injected.")

    with worker.watching(Once("jobs.fail", 1, fail)):
        assert (await worker.dead_letter(message, publishTime=died)).status_code == 503
    (letter,) = await worker.letters()
    if outcome == "cancelled":
        await cancelled(worker, key)
    else:
        clock.move(31)
        await worker.run_job(key)
    before = await job_of(worker.backend, key)
    assert (await worker.dead_letter(message, publishTime=died)).status_code == 204
    assert await job_of(worker.backend, key) == before
    assert await worker.letters() == []
    resolved = await worker.backend.dead_letters.get(letter.key)
    assert resolved is not None and resolved.resolved_at is not None


async def test_a_notice_that_died_is_kept(worker: RunningWorker) -> None:
    message = Notify("public", new_job_id(), "job.completed", "email")
    assert (await worker.dead_letter(message, reason="HTTP 503")).status_code == 204
    (letter,) = await worker.letters()
    assert (letter.attributes, letter.code) == (message.attributes(), "delivery_exhausted")


# --- The reconciler -------------------------------------------------------------------------------


async def swept(worker: RunningWorker) -> dict[str, int]:
    answer = await worker.client.post("/reconcile")
    assert answer.status_code == 200
    counts: dict[str, int] = answer.json()
    return {outcome: count for outcome, count in counts.items() if count}


async def test_what_a_live_job_waits_for_is_left_to_it(
    worker: RunningWorker, clock: MovableClock
) -> None:
    await a_job(worker, pictures(2), not_before=clock() + timedelta(days=1))
    for _ in range(3):
        clock.move(601)
        assert await swept(worker) == {"waiting": 2}
        assert worker.published() == []


async def test_what_a_job_left_behind_ends_with_it(
    worker: RunningWorker, clock: MovableClock
) -> None:
    image, shared, other = pictures(3)
    key = await a_job(worker, [image, shared], not_before=clock() + timedelta(days=1))
    deleted = await a_job(worker, [other])
    await worker.backend.records.change(key_of(worker, shared), want(Priority.LOW))
    await cancelled(worker, key)
    await worker.backend.jobs.delete(deleted)
    clock.move(601)
    assert await swept(worker) == {"cancelled": 2, "republished": 1}
    errors = [(await worker.record(key_of(worker, each))).error for each in (image, other)]
    assert [error and (error.code, error.retryable) for error in errors] == [
        ("cancelled", True)
    ] * 2
    assert (await worker.record(key_of(worker, shared))).status is Status.PENDING


async def test_an_image_that_a_client_asks_for_before_it_ends_is_kept(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """P1: a client's request comes between the reconciler's read and its write.

    The request does not change `updated_at`, so only the job's id tells the two apart.
    """
    (image,) = pictures(1)
    key = await a_job(worker, [image])
    await cancelled(worker, key)
    clock.move(601)
    wants = partial(worker.backend.records.change, key_of(worker, image), want(Priority.HIGH))
    with worker.watching(Once("records.fail_unleased", 1, wants)):
        assert await swept(worker) == {"skipped": 1}
    record = await worker.record(key_of(worker, image))
    assert (record.status, record.job, record.error) == (Status.PENDING, "", None)
    assert await swept(worker) == {"republished": 1}


@pytest.mark.parametrize("job", [False, True], ids=["of a client", "of a live job"])
async def test_a_record_that_moves_before_it_is_marked_is_left_alone(
    worker: RunningWorker, clock: MovableClock, job: bool
) -> None:
    """A worker claims and releases it between the reconciler's read and its write."""
    (image,) = pictures(1)
    if job:
        await a_job(worker, [image], not_before=clock() + timedelta(days=1))
    else:
        await worker.submit(image)
    clock.move(601)
    key = key_of(worker, image)

    async def claim_and_release() -> None:
        claim = await claimed(worker.backend.records, key, LEASE)
        assert claim is not None
        assert await worker.backend.records.change(claim.key, release(claim))
        clock.move(1)

    with worker.watching(Once("records.touch", 1, claim_and_release)):
        await swept(worker)
    record = await worker.record(key)
    assert record.updated_at == clock() - timedelta(seconds=1)
    assert worker.published() == []


async def test_a_large_job_that_waits_holds_up_nobody_else(
    worker: RunningWorker, clock: MovableClock
) -> None:
    images = pictures(1) * 1
    await a_job(worker, pictures(450), not_before=clock() + timedelta(days=1))
    clock.move(1)
    upload = await worker.submit(images[0])
    clock.move(601)
    assert await swept(worker) == {"waiting": 450, "republished": 1}
    assert worker.published() == [ClassifyImage(upload)]


async def test_a_waiting_image_that_cannot_be_marked_holds_up_nobody_else(
    worker: RunningWorker, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image, other), records = pictures(2), worker.backend.records
    await a_job(worker, [image], not_before=clock() + timedelta(days=1))
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


# --- The schedule ---------------------------------------------------------------------------------


async def test_nothing_is_done_where_nothing_is_due(
    worker: RunningWorker, clock: MovableClock
) -> None:
    key = await a_job(worker, pictures(1))
    await worker.run_job(key)
    before = await job_of(worker.backend, key)
    calls: list[str] = []

    async def note(name: str, after: bool) -> None:
        calls.append(name)

    clock.move(60)
    with worker.watching(note), structlog.testing.capture_logs() as lines:
        assert await worker.schedule() == {}
    assert set(calls) == {"jobs.due"}
    assert [line["log_level"] for line in lines] == ["debug"]
    assert await job_of(worker.backend, key) == before


async def test_a_delayed_job_begins_when_it_may(worker: RunningWorker, clock: MovableClock) -> None:
    key = await a_job(worker, pictures(1), not_before=clock() + timedelta(seconds=90))
    clock.move(89)
    assert await worker.schedule() == {}
    clock.move(1)
    answers = await asyncio.gather(*(worker.schedule() for _ in range(4)))
    assert Counter(action for answer in answers for action in answer) == {"run": 1}
    assert worker.published() == [RunJob("public", key.id)]
    await worker.run_job(key)
    assert (await job_of(worker.backend, key)).status is JobStatus.RUNNING


async def test_a_job_whose_start_was_lost_is_started(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """The process that created it died before it published."""
    key = await a_job(worker, pictures(1))
    clock.move(31)
    assert await worker.schedule() == {"run": 1}
    assert worker.published() == [RunJob("public", key.id)]


async def test_an_overdue_job_is_cancelled(worker: RunningWorker, clock: MovableClock) -> None:
    key = await a_job(worker, pictures(2), deadline=clock() + timedelta(seconds=60))
    await worker.run_job(key)
    clock.move(60)
    assert await worker.schedule() == {"cancel": 1}
    job = await job_of(worker.backend, key)
    assert job.status is JobStatus.CANCELLED
    assert job.error is not None
    assert job.error.code == "deadline_exceeded"
    assert notices(worker) == [Notify("public", key.id, "job.cancelled")]
    assert await worker.schedule() == {}


async def test_what_had_ended_by_the_deadline_counts(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """Nothing is settled after it that would count what the last count lacks."""
    key = await a_job(worker, pictures(2), deadline=clock() + timedelta(seconds=60))
    await worker.run_job(key)
    assert await worker.backend.jobs.settle(key, 0, None, timedelta(hours=1)) is None
    clock.move(60)
    assert await worker.schedule() == {"cancel": 1}
    job = await job_of(worker.backend, key)
    assert (job.status, job.counts, job.cancelled_items) == (JobStatus.CANCELLED, Counts(2, 1), 1)


async def test_a_job_that_stands_still_is_published_anew_at_growing_intervals(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """It may only wait behind more urgent ones: its backlog must not be flooded with copies."""
    key = await a_job(worker, pictures(1), priority=Priority.LOW)
    await worker.run_job(key)
    began, turns = clock(), []
    while clock() - began < timedelta(days=2):
        clock.move(60)
        if await worker.schedule():
            turns.append(round((clock() - began).total_seconds() / 600))
    assert turns[:6] == [1, 2, 4, 8, 16, 32]
    assert len(turns) <= 12


async def test_a_job_that_waits_to_be_started_is_asked_for_less_and_less_often(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """Each of these messages, once it comes, would publish every open image again."""
    await a_job(worker, pictures(1), not_before=clock() + timedelta(days=1))
    clock.move(24 * 3600)
    began, turns = clock(), []
    while clock() - began < timedelta(hours=1):
        if await worker.schedule():
            turns.append(round((clock() - began).total_seconds()))
        clock.move(10)
    assert turns[:7] == [0, 30, 60, 120, 240, 480, 960]
    assert len(turns) <= 12


async def test_progress_puts_the_repair_off(worker: RunningWorker, clock: MovableClock) -> None:
    key = await a_job(worker, pictures(3))
    await worker.run_job(key)
    for message in worker.published()[:2]:
        clock.move(500)
        assert await worker.schedule() == {}
        await deliver(worker, message)
    clock.move(601)
    assert await worker.schedule() == {"run": 1}


async def test_a_job_that_takes_too_long_fails(worker: RunningWorker, clock: MovableClock) -> None:
    key = await a_job(worker, pictures(1), not_before=clock() + timedelta(days=30))
    clock.move(30 * 24 * 3600)
    assert await worker.schedule() == {"run": 1}
    await worker.run_job(key)
    done: Counter[str] = Counter()
    while "expire" not in done:
        clock.move(3600)
        done.update(await worker.schedule())
        assert done["run"] < 30
    job = await job_of(worker.backend, key)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "expired"
    assert job.started_at is not None
    assert timedelta(days=7) <= clock() - job.started_at < timedelta(days=8)
    assert notices(worker) == [Notify("public", key.id, "job.failed")]


async def test_an_end_that_was_not_announced_is(worker: RunningWorker, clock: MovableClock) -> None:
    key = await a_job(worker, pictures(1))
    assert await worker.backend.jobs.change(key, jobs.cancel())  # and there it died
    clock.move(31)
    assert await worker.schedule() == {"announce": 1}
    assert notices(worker) == [Notify("public", key.id, "job.cancelled")]
    assert (await job_of(worker.backend, key)).announced
    clock.move(31)
    assert await worker.schedule() == {}


async def test_an_announcement_that_fails_does_not_undo_the_end(
    worker: RunningWorker, clock: MovableClock
) -> None:
    key = await a_job(worker, pictures(1))
    await worker.run_job(key)

    async def fail() -> None:
        raise Unavailable("A fault was injected.")

    with worker.watching(Once("publisher.publish", 1, fail)):
        await deliver(worker, worker.published()[0])
    job = await job_of(worker.backend, key)
    assert (job.status, job.announced) == (JobStatus.COMPLETED, False)
    clock.move(31)
    assert await worker.schedule() == {"announce": 1}


async def test_a_count_that_fails_comes_with_the_announcement(
    worker: RunningWorker, clock: MovableClock
) -> None:
    key = await a_job(worker, pictures(2))
    await worker.run_job(key)
    assert await worker.backend.jobs.settle(key, 0, None, timedelta(hours=1)) is None

    async def fail() -> None:
        raise Unavailable("A fault was injected.")

    faulty = watched(worker.backend, Once("jobs.refresh", 1, fail))
    assert await cancel(faulty, key, worker.context.job_policy) is not None
    job = await job_of(worker.backend, key)
    assert (job.status, job.announced) == (JobStatus.CANCELLED, False)
    clock.move(31)
    assert await worker.schedule() == {"announce": 1}
    job = await job_of(worker.backend, key)
    assert (job.counts, job.announced) == (Counts(2, 1), True)
    assert notices(worker) == [Notify("public", key.id, "job.cancelled")]


async def test_old_jobs_and_those_never_created_completely_are_deleted(
    worker: RunningWorker, clock: MovableClock
) -> None:
    old = await a_job(worker, pictures(2))
    await cancelled(worker, old)
    unsealed = JobKey("public", new_job_id())
    await worker.backend.jobs.create(new_job(unsealed, "", worker.model, 1, clock()))
    clock.move(3600)
    assert await worker.schedule() == {"delete": 1}
    assert await worker.backend.jobs.get(unsealed) is None
    clock.move(worker.context.job_policy.retention - 3601)
    assert await worker.schedule() == {}
    clock.move(1)
    assert await worker.schedule() == {"delete": 1}
    assert await worker.backend.jobs.get(old) is None
    assert await worker.backend.jobs.items(old, 10) == []


async def test_a_store_that_does_not_answer_is_asked_again(
    worker: RunningWorker, clock: MovableClock
) -> None:
    key = await a_job(worker, pictures(1), deadline=clock() + timedelta(seconds=60))
    await worker.run_job(key)
    clock.move(60)
    for number in range(1, 4):
        with worker.watching(FaultAt(number, after=False)):
            assert (await worker.client.post("/schedule")).status_code == 503
        clock.move(31)
    assert await worker.schedule() == {"cancel": 1}
    assert (await job_of(worker.backend, key)).status is JobStatus.CANCELLED
