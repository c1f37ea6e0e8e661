"""A job: work on many images that is watched, cancelled and told about as one.

    pending -> running -> completed | failed | cancelled        (pending may end at once as well)

A job's items are rows of their own. Its progress is a count over them; the job keeps the last one
taken (`counts`), which never goes backwards, and `revision`, which rises with every change that a
watcher should see. As with records, the functions below decide and stores apply: each takes a job
and returns the next one, or None where the transition is refused. Times are timezone-aware UTC.
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from core.domain.messages import JOB_ID
from core.domain.policy import JobPolicy
from core.domain.priority import Priority
from core.domain.records import TENANT, RecordError
from core.domain.sort_keys import position
from core.errors import BatchTooLarge

BATCH_PREDICT = "batch-predict"
JOB_TYPES = (BATCH_PREDICT,)
CANCELLED = "cancelled"  # the code of what a cancelled job left undone
DEADLINE_EXCEEDED = "deadline_exceeded"
EXPIRED = "expired"
POLICY = JobPolicy()


class JobStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self not in (JobStatus.PENDING, JobStatus.RUNNING)


class ItemState(StrEnum):
    """`open` until its image's record has ended, however it ends."""

    OPEN = "open"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class JobKey:
    """Which job, of whom. Raises ValueError where malformed."""

    tenant: str
    id: str

    def __post_init__(self) -> None:
        for value, pattern, name in ((self.tenant, TENANT, "tenant"), (self.id, JOB_ID, "job_id")):
            if not pattern.fullmatch(value):
                raise ValueError(f"{name} is malformed")


@dataclass(frozen=True, slots=True)
class Counts:
    """Items of a job."""

    total: int
    succeeded: int = 0
    failed: int = 0

    @property
    def settled(self) -> int:
        return self.succeeded + self.failed

    @property
    def open(self) -> int:
        return self.total - self.settled

    def older_than(self, other: "Counts") -> bool:
        """Whether one of the numbers was counted before that of `other`: they only rise."""
        return self.succeeded < other.succeeded or self.failed < other.failed


@dataclass(frozen=True, slots=True)
class Job:
    """`owner` is the id of the key that created it, empty where no keys are asked for.

    `fingerprint` tells manifests apart. `sealed`: all items are stored; before, nobody is shown the
    job. `announced`: whoever asked for it has been told of the end. `counted_at` is when `counts`
    were taken, `wake_at` when the scheduler has to look at the job next.
    """

    key: JobKey
    owner: str
    type: str
    model: str
    priority: Priority
    counts: Counts
    created_at: datetime
    updated_at: datetime
    counted_at: datetime
    wake_at: datetime
    status: JobStatus = JobStatus.PENDING
    revision: int = 1
    fingerprint: str = ""
    sealed: bool = False
    announced: bool = False
    not_before: datetime | None = None
    deadline: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    error: RecordError | None = None
    notify_email: str = ""

    @property
    def position(self) -> str:
        """Where a listing, newest first, has it."""
        return position(self.created_at, self.key.id)

    @property
    def progress(self) -> int:
        """Percent of the items that are settled, rounded down; 100 only at `completed`."""
        if self.status is JobStatus.COMPLETED:
            return 100
        return min(99, 100 * self.counts.settled // max(1, self.counts.total))

    @property
    def cancelled_items(self) -> int:
        return self.counts.open if self.status.terminal else 0

    def over(self, now: datetime) -> bool:
        """Whether nothing of it may begin any more: it has ended, or its deadline is past."""
        return self.status.terminal or (self.deadline is not None and self.deadline <= now)


@dataclass(frozen=True, slots=True)
class JobItem:
    """One image of a job. `image_hash` is empty where there was none to hash.

    Of items with equal images the first is the one that is worked on: it lists the others as
    `twins`, and they name it in `twin_of`. They are settled together.
    """

    position: int
    image_hash: str
    name: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    state: ItemState = ItemState.OPEN
    error: RecordError | None = None
    twin_of: int | None = None
    twins: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs of a tenant; empty texts mean any. With `owner`, only of that key."""

    tenant: str
    status: str = ""
    type: str = ""
    owner: str | None = None


def new_job_id() -> str:
    return secrets.token_hex(16)


def job_id_for(tenant: str, owner: str, idempotency_key: str) -> str:
    """The id of the one job that this caller can create under this key."""
    facts = "\n".join((tenant, owner, idempotency_key))
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def new_job(
    key: JobKey,
    owner: str,
    model: str,
    total: int,
    now: datetime,
    *,
    type_: str = BATCH_PREDICT,
    priority: Priority = Priority.NORMAL,
    fingerprint: str = "",
    not_before: datetime | None = None,
    deadline: datetime | None = None,
    notify_email: str = "",
    policy: JobPolicy = POLICY,
) -> Job:
    """A job whose items are yet to be stored."""
    return Job(
        key=key,
        owner=owner,
        type=type_,
        model=model,
        priority=priority,
        counts=Counts(total),
        created_at=now,
        updated_at=now,
        counted_at=now,
        wake_at=now + _seconds(policy.unsealed),
        fingerprint=fingerprint,
        not_before=not_before,
        deadline=deadline,
        notify_email=notify_email,
    )


# --- Transitions. ---------------------------------------------------------------------------------


def sealed(job: Job, now: datetime, policy: JobPolicy = POLICY) -> Job | None:
    """All items are stored. From now on it is shown, and the scheduler starts it if nobody does.

    Refused where it took so long that the scheduler is about to delete it.
    """
    if job.sealed or job.status.terminal:
        return None
    wake = job.not_before or now + _seconds(policy.announce_after)
    return replace(job, sealed=True, updated_at=now, wake_at=_first(job, wake))


def started(job: Job, now: datetime, policy: JobPolicy = POLICY) -> Job | None:
    """Its items are being published; refused unless it waits to begin, and may."""
    early = job.not_before is not None and job.not_before > now
    if job.status is not JobStatus.PENDING or not job.sealed or early or job.over(now):
        return None
    return _changed(
        job,
        now,
        status=JobStatus.RUNNING,
        started_at=now,
        wake_at=_first(job, now + _seconds(policy.stale_after)),
    )


def counted(job: Job, counts: Counts, now: datetime, policy: JobPolicy = POLICY) -> Job | None:
    """With the newest count of its items; completed when none is open.

    Refused where nothing has changed, and for an older count than it has. The items that a worker
    had in hand when a job was cancelled still count; the status stays.
    """
    if not job.sealed or counts.older_than(job.counts):
        return None
    if job.status.terminal or counts.open:
        if counts == job.counts:
            return None
        after = _changed(job, now, counts=counts, counted_at=now)
        if job.status is not JobStatus.RUNNING:
            return after
        return replace(after, wake_at=_first(job, now + _seconds(policy.stale_after)))
    return _ended(replace(job, counts=counts, counted_at=now), JobStatus.COMPLETED, now, policy)


def cancelled(
    job: Job, now: datetime, error: RecordError | None = None, policy: JobPolicy = POLICY
) -> Job | None:
    """Nothing of it begins any more; refused once it has ended. `error` is why, if not by wish."""
    if job.status.terminal:
        return None
    return _ended(job, JobStatus.CANCELLED, now, policy, error)


def failed(job: Job, error: RecordError, now: datetime, policy: JobPolicy = POLICY) -> Job | None:
    """It could not be run; refused once it has ended."""
    if job.status.terminal:
        return None
    return _ended(job, JobStatus.FAILED, now, policy, error)


def announced(job: Job, now: datetime, policy: JobPolicy = POLICY) -> Job | None:
    """Whoever asked for it has been told of its end."""
    if not job.status.terminal or job.announced:
        return None
    return replace(job, announced=True, wake_at=_expiry(job, policy))


def looked_after(job: Job, seen: datetime, now: datetime, policy: JobPolicy = POLICY) -> Job | None:
    """The scheduler's turn at a job that it saw with `wake_at` at `seen`: of several, one wins it.

    The next turn comes after another while, should this one come to nothing. Where the job is to
    be run that while doubles: it may only wait behind others, and each turn publishes it again.
    What was never sealed cannot be from here on.
    """
    if job.wake_at != seen or job.wake_at > now:
        return None
    wake = now + _seconds(policy.announce_after)
    if not (job.sealed or job.status.terminal):
        return _changed(job, now, status=JobStatus.FAILED, wake_at=wake)
    if due_action(job, now, policy) is Action.RUN:
        wake = now + _patience(job, now, policy)
    elif job.announced:
        wake = max(wake, _expiry(job, policy))
    if job.deadline is not None and not job.over(now):
        wake = min(wake, job.deadline)
    return replace(job, wake_at=wake)


def _patience(job: Job, now: datetime, policy: JobPolicy) -> timedelta:
    """How long to wait until a job that has not got on is run again: as long as it has waited."""
    waited = now - max(job.updated_at, job.not_before or job.updated_at)
    if job.status is JobStatus.RUNNING:
        least, most = policy.stale_after, policy.longest / 14
    else:
        least, most = policy.announce_after, policy.stale_after
    return max(_seconds(least), min(waited, _seconds(most)))


class Action(StrEnum):
    """What the scheduler does about a job whose time has come."""

    WAIT = "wait"
    RUN = "run"  # publish `RunJob`: to begin, or since nothing has moved for long
    CANCEL = "cancel"  # its deadline is past
    EXPIRE = "expire"  # it takes longer than any job may
    ANNOUNCE = "announce"
    DELETE = "delete"  # it is kept no longer, or was never sealed


def due_action(job: Job, now: datetime, policy: JobPolicy = POLICY) -> Action:
    """What to do at `job.wake_at`."""
    began = max(job.created_at, job.not_before or job.created_at)
    cases = (
        (job.wake_at > now, Action.WAIT),
        (not job.sealed, Action.DELETE),
        (job.status.terminal and not job.announced, Action.ANNOUNCE),
        (job.status.terminal and _expiry(job, policy) <= now, Action.DELETE),
        (job.status.terminal, Action.WAIT),
        (job.over(now), Action.CANCEL),
        (began + _seconds(policy.longest) <= now, Action.EXPIRE),
    )
    return next((action for applies, action in cases if applies), Action.RUN)


def _ended(
    job: Job,
    status: JobStatus,
    now: datetime,
    policy: JobPolicy,
    error: RecordError | None = None,
) -> Job:
    return _changed(
        job,
        now,
        status=status,
        error=error,
        completed_at=now,
        wake_at=now + _seconds(policy.announce_after),
    )


def _changed(job: Job, now: datetime, **changes: object) -> Job:
    """With a new revision: what a watcher should see."""
    return replace(job, revision=job.revision + 1, updated_at=now, **changes)  # type: ignore[arg-type]


def _first(job: Job, moment: datetime) -> datetime:
    """The deadline if it comes before `moment`."""
    return moment if job.deadline is None else min(moment, job.deadline)


def _expiry(job: Job, policy: JobPolicy) -> datetime:
    return (job.completed_at or job.updated_at) + _seconds(policy.retention)


def _seconds(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def check_count(images: int, most: int) -> None:
    """Raise BatchTooLarge where there are more than a batch may have."""
    if images > most:
        raise BatchTooLarge(
            f"A batch has at most {most} images; send more as several.",
            extra={"max_items": most},
        )
