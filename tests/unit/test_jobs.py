"""The transitions of jobs, and that no sequence of them breaks a promise."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.domain import jobs
from core.domain.jobs import (
    Action,
    Counts,
    ItemState,
    Job,
    JobItem,
    JobKey,
    JobStatus,
    due_action,
    job_id_for,
    new_job_id,
)
from core.domain.policy import JobPolicy
from core.domain.records import RecordError

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
POLICY = JobPolicy(
    retention=1000, max_duration=5000, seal_timeout=100, stale_after=60, announce_after=30
)
BROKEN = RecordError("delivery_exhausted", "It could not be run.", True)


def job(total: int = 10, **changes: object) -> Job:
    made = jobs.new_job(JobKey("public", "a" * 32), "", "m@0123456789ab", total, NOW, policy=POLICY)
    return replace(made, **changes)  # type: ignore[arg-type]


def sealed(total: int = 10, **changes: object) -> Job:
    after = jobs.seal(POLICY)(job(total, **changes), NOW)
    assert after is not None
    return after


def running(total: int = 10, **changes: object) -> Job:
    after = jobs.start(POLICY)(sealed(total, **changes), NOW)
    assert after is not None
    return after


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_job_runs_from_pending_to_completed() -> None:
    waiting = sealed()
    assert (waiting.status, waiting.progress, waiting.sealed) == (JobStatus.PENDING, 0, True)
    begun = running()
    assert (begun.status, begun.started_at) == (JobStatus.RUNNING, NOW)
    half = jobs.update_counts(Counts(10, 4, 1), policy=POLICY)(begun, later(1))
    assert half is not None
    assert (half.progress, half.status, half.counted_at) == (50, JobStatus.RUNNING, later(1))
    done = jobs.update_counts(Counts(10, 8, 2), policy=POLICY)(half, later(2))
    assert done is not None
    assert (done.progress, done.status, done.completed_at) == (100, JobStatus.COMPLETED, later(2))
    assert waiting.revision < begun.revision < half.revision < done.revision


def test_count_does_not_wake_a_job_before_its_start() -> None:
    waiting = sealed(not_before=later(500))
    after = jobs.update_counts(Counts(10, 0, 1), policy=POLICY)(waiting, later(1))
    assert after is not None
    assert (after.counts.failed, after.wake_at) == (1, later(500))


def test_job_of_known_images_completes_before_its_start() -> None:
    done = jobs.update_counts(Counts(3, 3, 0), policy=POLICY)(sealed(3), later(1))
    assert done is not None
    assert done.status is JobStatus.COMPLETED


def test_failed_items_do_not_fail_the_job() -> None:
    done = jobs.update_counts(Counts(2, 0, 2), policy=POLICY)(running(2), later(1))
    assert done is not None
    assert (done.status, done.error) == (JobStatus.COMPLETED, None)


@pytest.mark.parametrize(
    "older",
    [
        Counts(10, 3, 1),
        Counts(10, 4, 1),  # the count that the job has
        Counts(10, 4, 0),
        Counts(10, 3, 2),
        Counts(10, 3, 6),  # a larger sum, of which one number was counted earlier
    ],
)
def test_counts_of_a_job_never_decrease(older: Counts) -> None:
    half = jobs.update_counts(Counts(10, 4, 1), policy=POLICY)(running(), later(1))
    assert half is not None
    assert jobs.update_counts(older, policy=POLICY)(half, later(2)) is None


def test_failed_item_that_succeeds_in_a_new_attempt_counts_as_succeeded() -> None:
    item = JobItem(0, "a" * 64)
    broken = jobs.complete_item(item, BROKEN)
    assert broken is not None
    repaired = jobs.complete_item(broken, None)
    assert repaired == replace(item, state=ItemState.SUCCEEDED)
    assert jobs.complete_item(repaired, BROKEN) is None
    assert jobs.complete_item(broken, BROKEN) is None
    permanent = jobs.complete_item(item, replace(BROKEN, retryable=False))
    assert permanent is not None
    assert jobs.complete_item(permanent, None) is None

    ended = jobs.update_counts(Counts(10, 8, 2), policy=POLICY)(running(), later(1))
    assert ended is not None
    after = jobs.update_counts(Counts(10, 9, 1), policy=POLICY)(ended, later(2))
    assert after is not None
    assert (after.status, after.counts) == (JobStatus.COMPLETED, Counts(10, 9, 1))
    assert after.revision == ended.revision + 1


def test_job_that_could_not_run_begins_a_new_attempt_while_it_has_time() -> None:
    failed = jobs.fail(BROKEN, POLICY)(running(), later(1))
    assert failed is not None
    again = jobs.retry(POLICY)(failed, later(2))
    assert again is not None
    assert (again.status, again.error, again.completed_at) == (JobStatus.PENDING, None, None)
    assert again.wake_at == later(2 + POLICY.announce_after)
    assert jobs.retry(POLICY)(failed, later(POLICY.max_duration)) is None
    assert jobs.retry(POLICY)(replace(failed, deadline=later(2)), later(2)) is None
    assert jobs.retry(POLICY)(again, later(3)) is None
    permanent = jobs.fail(replace(BROKEN, retryable=False), POLICY)(running(), later(1))
    assert permanent is not None
    assert jobs.retry(POLICY)(permanent, later(2)) is None


def test_items_that_complete_after_a_cancellation_count() -> None:
    half = jobs.update_counts(Counts(10, 5), policy=POLICY)(running(), later(1))
    assert half is not None
    over = jobs.cancel(policy=POLICY)(half, later(2))
    assert over is not None
    assert (over.cancelled_items, over.progress) == (5, 50)
    more = jobs.update_counts(Counts(10, 6), policy=POLICY)(over, later(3))
    assert more is not None
    assert (more.status, more.cancelled_items) == (JobStatus.CANCELLED, 4)
    assert more.completed_at == later(2)
    # Even if all items succeed, the job stays cancelled.
    every = jobs.update_counts(Counts(10, 10), policy=POLICY)(more, later(4))
    assert every is not None
    assert (every.status, every.progress) == (JobStatus.CANCELLED, 99)


def test_ended_job_refuses_another_end() -> None:
    over = jobs.cancel(policy=POLICY)(running(), later(1))
    assert over is not None
    assert jobs.cancel(policy=POLICY)(over, later(2)) is None
    assert jobs.fail(BROKEN, POLICY)(over, later(2)) is None
    assert jobs.start(POLICY)(over, later(2)) is None


def test_job_starts_once_and_not_before_its_time() -> None:
    assert jobs.start(POLICY)(job(), NOW) is None  # not sealed
    assert jobs.start(POLICY)(running(), NOW) is None
    early = sealed(not_before=later(50))
    assert early.wake_at == later(50)
    assert jobs.start(POLICY)(early, later(49)) is None
    assert jobs.start(POLICY)(early, later(50)) is not None
    late = sealed(deadline=later(10))
    assert jobs.start(POLICY)(late, later(10)) is None


def test_job_is_sealed_once() -> None:
    assert jobs.seal(POLICY)(sealed(), later(5)) is None


@pytest.mark.parametrize(
    ("made", "moment", "action"),
    [
        (job(), 99, Action.WAIT),
        (job(), 100, Action.DELETE),  # never sealed
        (sealed(), 29, Action.WAIT),
        (sealed(), 30, Action.RUN),  # its RunJob was not published
        (sealed(not_before=later(500)), 499, Action.WAIT),
        (sealed(not_before=later(500)), 500, Action.RUN),
        (sealed(not_before=later(500), deadline=later(20)), 20, Action.CANCEL),
        (running(), 59, Action.WAIT),
        (running(), 60, Action.RUN),  # no progress
        (running(deadline=later(20)), 19, Action.WAIT),
        (running(deadline=later(20)), 20, Action.CANCEL),
        (running(), 5000, Action.EXPIRE),
        (jobs.cancel(policy=POLICY)(running(), NOW), 29, Action.WAIT),
        (jobs.cancel(policy=POLICY)(running(), NOW), 30, Action.ANNOUNCE),
    ],
)
def test_due_action(made: Job, moment: float, action: Action) -> None:
    assert due_action(made, later(moment), POLICY) is action


def test_announced_job_is_kept_for_its_retention() -> None:
    over = jobs.cancel(policy=POLICY)(running(), later(1))
    assert over is not None
    announced = jobs.mark_announced(POLICY)(over, later(2))
    assert announced is not None
    assert jobs.mark_announced(POLICY)(announced, later(3)) is None
    assert announced.revision == over.revision  # nothing that a watcher should see
    assert due_action(announced, later(1000), POLICY) is Action.WAIT
    assert due_action(announced, later(1001), POLICY) is Action.DELETE


def test_one_of_several_schedulers_reschedules_a_job() -> None:
    seen = sealed()
    turn = jobs.reschedule(seen.wake_at, POLICY)(seen, later(30))
    assert turn is not None
    assert turn.wake_at == later(60)  # again, in case this attempt fails
    assert jobs.reschedule(seen.wake_at, POLICY)(turn, later(30)) is None
    assert jobs.reschedule(seen.wake_at, POLICY)(seen, later(29)) is None


def test_job_that_the_scheduler_deletes_cannot_be_sealed() -> None:
    """Otherwise a job with a 202 could be deleted."""
    late = job()
    turn = jobs.reschedule(late.wake_at, POLICY)(late, later(100))
    assert turn is not None
    assert jobs.seal(POLICY)(turn, later(100)) is None
    assert due_action(turn, turn.wake_at, POLICY) is Action.DELETE


@pytest.mark.parametrize("deadline", [later(4000), None], ids=["overdue", "expired"])
def test_failed_attempt_to_end_a_job_is_repeated_soon(deadline: datetime | None) -> None:
    """Independently of how long the job has made no progress."""
    seen = replace(running(deadline=deadline), wake_at=later(5000))
    turn = jobs.reschedule(seen.wake_at, POLICY)(seen, later(5000))
    assert turn is not None
    assert turn.wake_at == later(5030)


def test_job_key_is_validated_and_ids_are_distinct() -> None:
    JobKey("public", new_job_id())
    with pytest.raises(ValueError, match="job_id"):
        JobKey("public", "../../etc")
    with pytest.raises(ValueError, match="tenant"):
        JobKey("Public!", "a" * 32)
    ids = {job_id_for(*who) for who in (("a", "b", "k"), ("a", "", "k"), ("b", "b", "k"))}
    assert len(ids | {job_id_for("a", "b", "k")}) == 3


STEPS = ("seal", "start", "count", "cancel", "fail", "retry", "announce", "reschedule")
steps = st.lists(st.sampled_from(STEPS), max_size=30)


@given(steps, st.data())
def test_no_sequence_of_transitions_breaks_a_promise(names: list[str], data: st.DataObject) -> None:
    """P3 and P4 for jobs: only `retry` takes back an end, counts rise, `wake_at` is always set."""
    here, now = job(), NOW
    for name in names:
        now += timedelta(seconds=data.draw(st.integers(0, 40)))
        succeeded = data.draw(st.integers(max(0, here.counts.succeeded - 1), 10))
        failed = data.draw(st.integers(0, 10 - succeeded))
        transition = {
            "seal": jobs.seal(POLICY),
            "start": jobs.start(POLICY),
            "count": jobs.update_counts(Counts(10, succeeded, failed), policy=POLICY),
            "cancel": jobs.cancel(policy=POLICY),
            "fail": jobs.fail(BROKEN, POLICY),
            "retry": jobs.retry(POLICY),
            "announce": jobs.mark_announced(POLICY),
            "reschedule": jobs.reschedule(here.wake_at, POLICY),
        }[name]
        after = transition(here, now)
        if after is None:
            continue
        if name == "retry":
            assert (here.status, after.status) == (JobStatus.FAILED, JobStatus.PENDING)
        elif here.status.terminal:
            assert after.status is here.status
            assert after.completed_at == here.completed_at
        assert after.counts.succeeded >= here.counts.succeeded
        assert after.counts.completed >= here.counts.completed
        seen = ("status", "counts", "progress", "error")
        changed = any(getattr(after, field) != getattr(here, field) for field in seen)
        assert after.revision == here.revision + changed
        assert (after.progress == 100) is (after.status is JobStatus.COMPLETED)
        assert not (after.status is JobStatus.COMPLETED and after.counts.open)
        assert after.wake_at > here.created_at
        here = after
