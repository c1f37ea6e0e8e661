"""Due jobs: started, cancelled, failed, announced and deleted by the schedule."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from core.domain import jobs
from core.domain.jobs import Counts, JobKey, JobStatus, new_job, new_job_id
from core.domain.messages import Notify, RunJob
from core.domain.priority import Priority
from core.errors import Unavailable
from core.services.job_completion import cancel
from tests.support.clock import MovableClock
from tests.support.faults import FaultAt, Once, watched
from tests.support.jobs import job_of
from tests.support.worker import (
    RunningWorker,
)
from tests.support.worker_jobs import (
    cancel_job,
    deliver,
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


async def test_schedule_without_due_jobs_reads_once(
    worker: RunningWorker, clock: MovableClock
) -> None:
    key = await submit_job(worker, pictures(1))
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


async def test_delayed_job_starts_at_its_time(worker: RunningWorker, clock: MovableClock) -> None:
    key = await submit_job(worker, pictures(1), not_before=clock() + timedelta(seconds=90))
    clock.move(89)
    assert await worker.schedule() == {}
    clock.move(1)
    answers = await asyncio.gather(*(worker.schedule() for _ in range(4)))
    assert Counter(action for answer in answers for action in answer) == {"run": 1}
    assert worker.published() == [RunJob("public", key.id)]
    await worker.run_job(key)
    assert (await job_of(worker.backend, key)).status is JobStatus.RUNNING


async def test_job_whose_start_message_was_lost_is_started(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """The process that created the job ended before it published the message."""
    key = await submit_job(worker, pictures(1))
    clock.move(31)
    assert await worker.schedule() == {"run": 1}
    assert worker.published() == [RunJob("public", key.id)]


async def test_job_past_its_deadline_is_cancelled(
    worker: RunningWorker, clock: MovableClock
) -> None:
    key = await submit_job(worker, pictures(2), deadline=clock() + timedelta(seconds=60))
    await worker.run_job(key)
    clock.move(60)
    assert await worker.schedule() == {"cancel": 1}
    job = await job_of(worker.backend, key)
    assert job.status is JobStatus.CANCELLED
    assert job.error is not None
    assert job.error.code == "deadline_exceeded"
    assert notifications(worker) == [Notify("public", key.id, "job.cancelled")]
    assert await worker.schedule() == {}


async def test_items_completed_before_the_deadline_are_counted(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """No later item causes the count that would include them."""
    key = await submit_job(worker, pictures(2), deadline=clock() + timedelta(seconds=60))
    await worker.run_job(key)
    assert await worker.backend.jobs.complete_item(key, 0, None, timedelta(hours=1)) is None
    clock.move(60)
    assert await worker.schedule() == {"cancel": 1}
    job = await job_of(worker.backend, key)
    assert (job.status, job.counts, job.cancelled_items) == (JobStatus.CANCELLED, Counts(2, 1), 1)


async def test_stalled_job_is_published_again_at_growing_intervals(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """The job may only wait for more urgent ones, so copies must not flood its channel."""
    key = await submit_job(worker, pictures(1), priority=Priority.LOW)
    await worker.run_job(key)
    began, turns = clock(), []
    while clock() - began < timedelta(days=2):
        clock.move(120)
        if await worker.schedule():
            turns.append(round((clock() - began).total_seconds() / 600))
    assert turns[:6] == [1, 2, 4, 8, 16, 32]
    assert len(turns) <= 12


async def test_pending_job_is_published_again_at_growing_intervals(
    worker: RunningWorker, clock: MovableClock
) -> None:
    """Each of these messages publishes every open image again when it arrives."""
    await submit_job(worker, pictures(1), not_before=clock() + timedelta(days=1))
    clock.move(24 * 3600)
    began, turns = clock(), []
    while clock() - began < timedelta(hours=1):
        if await worker.schedule():
            turns.append(round((clock() - began).total_seconds()))
        clock.move(10)
    assert turns[:7] == [0, 30, 60, 120, 240, 480, 960]
    assert len(turns) <= 12


async def test_progress_postpones_the_repair(worker: RunningWorker, clock: MovableClock) -> None:
    key = await submit_job(worker, pictures(3))
    await worker.run_job(key)
    for message in worker.published()[:2]:
        clock.move(500)
        assert await worker.schedule() == {}
        await deliver(worker, message)
    clock.move(601)
    assert await worker.schedule() == {"run": 1}


async def test_job_that_takes_too_long_fails(worker: RunningWorker, clock: MovableClock) -> None:
    key = await submit_job(worker, pictures(1), not_before=clock() + timedelta(days=30))
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
    assert notifications(worker) == [Notify("public", key.id, "job.failed")]


async def test_missing_announcement_is_repeated(worker: RunningWorker, clock: MovableClock) -> None:
    key = await submit_job(worker, pictures(1))
    assert await worker.backend.jobs.change(key, jobs.cancel())  # the process ends here
    clock.move(31)
    assert await worker.schedule() == {"announce": 1}
    assert notifications(worker) == [Notify("public", key.id, "job.cancelled")]
    assert (await job_of(worker.backend, key)).announced
    clock.move(31)
    assert await worker.schedule() == {}


async def test_failed_announcement_does_not_undo_the_completion(
    worker: RunningWorker, clock: MovableClock
) -> None:
    key = await submit_job(worker, pictures(1))
    await worker.run_job(key)

    async def fail() -> None:
        raise Unavailable("A fault was injected.")

    with worker.watching(Once("publisher.publish", 1, fail)):
        await deliver(worker, worker.published()[0])
    job = await job_of(worker.backend, key)
    assert (job.status, job.announced) == (JobStatus.COMPLETED, False)
    clock.move(31)
    assert await worker.schedule() == {"announce": 1}


async def test_failed_count_is_repeated_with_the_announcement(
    worker: RunningWorker, clock: MovableClock
) -> None:
    key = await submit_job(worker, pictures(2))
    await worker.run_job(key)
    assert await worker.backend.jobs.complete_item(key, 0, None, timedelta(hours=1)) is None

    async def fail() -> None:
        raise Unavailable("A fault was injected.")

    faulty = watched(worker.backend, Once("jobs.refresh_counts", 1, fail))
    assert await cancel(faulty, key, worker.context.job_policy) is not None
    job = await job_of(worker.backend, key)
    assert (job.status, job.announced) == (JobStatus.CANCELLED, False)
    clock.move(31)
    assert await worker.schedule() == {"announce": 1}
    job = await job_of(worker.backend, key)
    assert (job.counts, job.announced) == (Counts(2, 1), True)
    assert notifications(worker) == [Notify("public", key.id, "job.cancelled")]


async def test_old_and_incomplete_jobs_are_deleted(
    worker: RunningWorker, clock: MovableClock
) -> None:
    old = await submit_job(worker, pictures(2))
    await cancel_job(worker, old)
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


async def test_action_is_repeated_after_the_store_failed(
    worker: RunningWorker, clock: MovableClock
) -> None:
    key = await submit_job(worker, pictures(1), deadline=clock() + timedelta(seconds=60))
    await worker.run_job(key)
    clock.move(60)
    for number in range(1, 4):
        with worker.watching(FaultAt(number, after=False)):
            assert (await worker.client.post("/schedule")).status_code == 503
        clock.move(31)
    assert await worker.schedule() == {"cancel": 1}
    assert (await job_of(worker.backend, key)).status is JobStatus.CANCELLED
