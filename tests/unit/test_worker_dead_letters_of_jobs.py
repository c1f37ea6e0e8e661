"""Dead letters of job items, of jobs and of notifications (P4)."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from core.clock import rfc3339
from core.domain.jobs import Counts, JobStatus, new_job_id
from core.domain.messages import Notify, RunJob
from core.domain.records import ImageKey, RecordError, fail
from core.errors import Unavailable
from core.services.dead_letter_replay import Replay, replay
from tests.support.clock import MovableClock
from tests.support.faults import Once, watched
from tests.support.jobs import job_of, states
from tests.support.pictures import sha256
from tests.support.records import claimed, delete_image
from tests.support.worker import (
    RunningWorker,
)
from tests.support.worker_jobs import (
    LEASE,
    cancel_job,
    deliver,
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


async def test_item_fails_with_the_error_of_its_record(worker: RunningWorker) -> None:
    image, other = pictures(2)
    key = await submit_job(worker, [image, other, image])
    await worker.run_job(key)
    first, _, third = worker.published()
    for _ in range(2):
        answer = await worker.dead_letter(first, reason="HTTP 503")
        assert answer.status_code == 204
    assert await states(worker.backend, key) == ["delivery_exhausted", "open", "open"]
    await deliver(worker, third)  # another message about the same image
    assert await states(worker.backend, key) == ["delivery_exhausted", "open", "delivery_exhausted"]
    item = (await worker.backend.jobs.items(key, 1))[0]
    assert item.error == (await worker.record(key_of(worker, image))).error
    (letter,) = await worker.letters()
    assert letter.attributes["job"] == key.id


async def test_replay_repairs_the_job(worker: RunningWorker, clock: MovableClock) -> None:
    """P4: the failed items succeed, also the duplicate, and the job has no failures left."""
    image, other = pictures(2)
    key = await submit_job(worker, [image, other, image])
    await worker.run_job(key)
    first, second, third = worker.published()
    await worker.dead_letter(first, reason="HTTP 503")
    for message in (second, third):
        await deliver(worker, message)
    job = await job_of(worker.backend, key)
    assert (job.status, job.counts) == (JobStatus.COMPLETED, Counts(3, 1, 2))
    (letter,) = await worker.letters()
    clock.move(1)
    before = len(worker.published())
    assert await replay(worker.backend, "public", letter.id) is Replay.REPLAYED
    for message in worker.published()[before:]:
        await deliver(worker, message)
    assert await states(worker.backend, key) == ["succeeded"] * 3
    repaired = await job_of(worker.backend, key)
    assert (repaired.status, repaired.counts) == (JobStatus.COMPLETED, Counts(3, 3, 0))
    assert repaired.revision > job.revision


@pytest.mark.parametrize("skew", [0, 20], ids=["clocks agree", "the clock of the API is late"])
async def test_letter_that_is_made_again_does_not_fail_the_replayed_attempt(
    worker: RunningWorker, clock: MovableClock, skew: float
) -> None:
    """The worker stopped after it had stored the letter, and the queue made another one."""
    (image,) = pictures(1)
    key = await submit_job(worker, [image])
    await worker.run_job(key)
    (message,) = worker.published()
    await worker.dead_letter(message)
    (letter,) = await worker.letters()
    clock.move(1 - skew)
    assert await replay(worker.backend, "public", letter.id) is Replay.REPLAYED
    clock.move(1 + skew)
    assert (await worker.dead_letter(message)).status_code == 204
    assert not (await worker.record(key_of(worker, image))).status.terminal
    await deliver(worker, worker.published()[-1])
    assert await states(worker.backend, key) == ["succeeded"]
    assert (await job_of(worker.backend, key)).counts == Counts(1, 1)


async def test_replay_that_overtakes_the_letter_is_not_failed(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """The replay happens as soon as the letter is stored. The clock of the queue is ahead."""
    (image,) = pictures(1)
    key = await submit_job(worker, [image])
    await worker.run_job(key)
    (message,) = worker.published()

    async def overtake() -> None:
        (letter,) = await worker.letters()
        clock.move(1)
        assert await replay(worker.backend, "public", letter.id) is Replay.REPLAYED

    died = rfc3339(clock() + timedelta(seconds=20))
    with worker.watching(Once("records.fail_unleased", 1, overtake)):
        await worker.dead_letter(message, publishTime=died)
    assert not (await worker.record(key_of(worker, image))).status.terminal
    again = worker.published()[-1]
    assert (await worker.dead_letter(message, publishTime=died)).status_code == 204
    await deliver(worker, again)
    assert await states(worker.backend, key) == ["succeeded"]


@pytest.mark.parametrize("started", [False, True])
async def test_letter_that_is_made_again_does_not_fail_the_replayed_job(
    worker: RunningWorker, clock: MovableClock, started: bool
) -> None:
    key = await submit_job(worker, pictures(2))
    message = RunJob(key.tenant, key.id)
    await worker.dead_letter(message)
    (letter,) = await worker.letters()
    clock.move(1)
    assert await replay(worker.backend, "public", letter.id) is Replay.REPLAYED
    if started:
        await worker.run_job(key)
    clock.move(1)
    assert (await worker.dead_letter(message)).status_code == 204
    expected = JobStatus.RUNNING if started else JobStatus.PENDING
    assert (await job_of(worker.backend, key)).status is expected


async def test_replay_that_overtakes_the_letter_of_a_job_is_not_undone(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """The replay happens as soon as the letter is stored."""
    key = await submit_job(worker, pictures(2))
    replayed: list[Replay] = []

    async def overtake(name: str, after: bool) -> None:
        if name == "dead_letters.add" and after:
            (letter,) = await worker.letters()
            clock.move(1)
            replayed.append(await replay(worker.backend, "public", letter.id))

    with worker.watching(overtake):
        await worker.dead_letter(RunJob(key.tenant, key.id))
    assert replayed == [Replay.REPLAYED]
    assert (await job_of(worker.backend, key)).status is JobStatus.PENDING


async def test_dead_job_runs_after_its_replay(worker: RunningWorker, clock: MovableClock) -> None:
    key = await submit_job(worker, pictures(2))
    assert (await worker.dead_letter(RunJob(key.tenant, key.id))).status_code == 204
    assert (await job_of(worker.backend, key)).status is JobStatus.FAILED
    (letter,) = await worker.letters()
    clock.move(1)
    assert await replay(worker.backend, "public", letter.id) is Replay.REPLAYED
    before = len(worker.published())
    await worker.run_job(key)
    for message in worker.published()[before:]:
        await deliver(worker, message)
    job = await job_of(worker.backend, key)
    assert (job.status, job.counts, job.error) == (JobStatus.COMPLETED, Counts(2, 2), None)


async def test_letter_of_a_finished_image_completes_its_item(worker: RunningWorker) -> None:
    image, gone = pictures(2)
    key = await submit_job(worker, [image, gone])
    await worker.run_job(key)
    first, second = worker.published()
    assert (await worker.push(key_of(worker, image))).status_code == 204  # the message of a client
    await delete_image(worker.backend.records, ImageKey("public", sha256(gone)))
    for message in (first, second):
        assert (await worker.dead_letter(message)).status_code == 204
    assert await states(worker.backend, key) == ["succeeded", "image_missing"]
    assert (await job_of(worker.backend, key)).status is JobStatus.COMPLETED


async def test_late_letter_completes_the_item_as_its_record_ended(worker: RunningWorker) -> None:
    """Another delivery has failed the record, and stopped before it completed the item."""
    image, other = pictures(2)
    key = await submit_job(worker, [image, other])
    await worker.run_job(key)
    message = worker.published()[0]
    claim = await claimed(worker.backend.records, key_of(worker, image), LEASE)
    assert claim is not None
    error = RecordError("undecodable_image", "The image is truncated.", False)
    assert await worker.backend.records.change(claim.key, fail(claim, error))
    assert (await worker.dead_letter(message)).status_code == 204
    assert await states(worker.backend, key) == ["undecodable_image", "open"]


async def test_job_that_could_not_run_fails(worker: RunningWorker) -> None:
    key = await submit_job(worker, pictures(1))
    message = RunJob(key.tenant, key.id)
    for _ in range(2):
        answer = await worker.dead_letter(message, reason="HTTP 503")
        assert answer.status_code == 204
    job = await job_of(worker.backend, key)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "delivery_exhausted"
    assert job.error.detail == "The job was not run after 10 deliveries. Last failure: HTTP 503"
    assert notifications(worker) == [Notify("public", key.id, "job.failed")]
    (letter,) = await worker.letters()
    assert letter.attributes == message.attributes()
    assert letter.resolved_at is None


async def test_late_letter_of_a_finished_job_changes_nothing(worker: RunningWorker) -> None:
    key = await submit_job(worker, pictures(1))
    before = await cancel_job(worker, key)
    assert (await worker.dead_letter(RunJob(key.tenant, key.id))).status_code == 204
    assert (await job_of(worker.backend, key)).status is before.status
    assert await worker.letters() == []


async def test_late_letter_of_a_restarted_job_changes_nothing(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """The scheduler started the job again before the letter arrived."""
    key = await submit_job(worker, pictures(1))
    died = rfc3339(clock())
    clock.move(31)
    assert await worker.schedule() == {"run": 1}
    await worker.run_job(key)
    before = await job_of(worker.backend, key)
    letter = await worker.dead_letter(RunJob(key.tenant, key.id), publishTime=died)
    assert letter.status_code == 204
    assert await job_of(worker.backend, key) == before
    assert await worker.letters() == []
    # A message that died during the run fails the job.
    assert (await worker.dead_letter(RunJob(key.tenant, key.id))).status_code == 204
    assert (await job_of(worker.backend, key)).status is JobStatus.FAILED


@pytest.mark.parametrize("outcome", ["cancelled", "begun again"])
async def test_letter_of_a_job_that_has_moved_on_is_resolved(
    worker: RunningWorker, clock: MovableClock, outcome: str
) -> None:
    """A replay began the job again, and stopped before it resolved the letter."""
    key = await submit_job(worker, pictures(1))
    message, died = RunJob(key.tenant, key.id), rfc3339(clock())
    assert (await worker.dead_letter(message, publishTime=died)).status_code == 204
    (letter,) = await worker.letters()

    async def stop() -> None:
        raise Unavailable("A fault was injected.")

    with pytest.raises(Unavailable):
        await replay(
            watched(worker.backend, Once("dead_letters.resolve", 1, stop)), "public", letter.id
        )
    assert await worker.letters() == [letter]
    clock.move(31)
    if outcome == "cancelled":
        await cancel_job(worker, key)
    else:
        await worker.run_job(key)
    before = await job_of(worker.backend, key)
    assert (await worker.dead_letter(message, publishTime=died)).status_code == 204
    assert await job_of(worker.backend, key) == before
    assert await worker.letters() == []
    resolved = await worker.backend.dead_letters.get(letter.key)
    assert resolved is not None and resolved.resolved_at is not None


async def test_letter_of_a_notification_is_kept(worker: RunningWorker) -> None:
    message = Notify("public", new_job_id(), "job.completed", "email")
    assert (await worker.dead_letter(message, reason="HTTP 503")).status_code == 204
    (letter,) = await worker.letters()
    assert (letter.attributes, letter.code) == (message.attributes(), "delivery_exhausted")
