"""A job: many images that are classified, watched, cancelled and announced as one. Its transitions.

    pending -> running -> completed | failed | cancelled        (pending may also end at once)
    failed (with a retryable error) -> pending

The items of a job are stored separately. Its progress is a count of them: the job keeps the last
one (`counts`), of which only `failed` can fall, and `revision`, which rises with every change that
a watcher should see. Times are timezone-aware UTC.
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
from core.domain.sort_keys import sort_key
from core.domain.transitions import transition
from core.errors import BatchTooLarge

BATCH_PREDICT, TRAIN_MODEL = "batch-predict", "train-model"
FIT_NAME = "fit"  # the name of the last item of a training
CANCELLED = "cancelled"  # error code: the job ended before the image was classified
DEADLINE_EXCEEDED = "deadline_exceeded"
EXPIRED = "expired"
POLICY = JobPolicy()
MAX_NAME = 200  # characters of a job's name


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
    """An item is `open` until the record of its image ends, as `success` or as `error`."""

    OPEN = "open"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class JobKey:
    """Identifies a job. Raises ValueError if a part is malformed."""

    tenant: str
    id: str

    def __post_init__(self) -> None:
        for value, pattern, name in ((self.tenant, TENANT, "tenant"), (self.id, JOB_ID, "job_id")):
            if not pattern.fullmatch(value):
                raise ValueError(f"{name} is malformed")


@dataclass(frozen=True, slots=True)
class Counts:
    """The number of a job's items, by state."""

    total: int
    succeeded: int = 0
    failed: int = 0

    @property
    def completed(self) -> int:
        return self.succeeded + self.failed

    @property
    def open(self) -> int:
        return self.total - self.completed

    def older_than(self, other: "Counts") -> bool:
        """Whether a number that only rises is lower than that of `other`.

        `failed` may fall: an item that failed can succeed in a new attempt.
        """
        return self.succeeded < other.succeeded or self.completed < other.completed


@dataclass(frozen=True, slots=True)
class Training:
    """The model that a training job makes: a version of `name`.

    `activate`: requests by the name use the version from its creation on. `model` is the identity
    of the version, and `accuracy` its accuracy, once they are decided (`decide_model`).
    """

    name: str
    activate: bool = True
    model: str = ""
    accuracy: float = 0.0


@dataclass(frozen=True, slots=True)
class JobWebhook:
    """A receiver of the events of one job. Empty `events`: all.

    `secret` is the text with which its events are signed. `status` is that of the receiver's last
    answer, None before the first.
    """

    url: str
    events: frozenset[str] = frozenset()
    secret: str = field(default="", repr=False)
    status: int | None = None

    def wants(self, event: str) -> bool:
        return not self.events or event in self.events


@dataclass(frozen=True, slots=True)
class Job:
    """`owner` is the id of the API key that created the job, empty without keys.

    `name` is for display. `retry_of` is the id of the job whose items it tries again, or empty.
    `fingerprint` identifies the request that created it. `sealed`: all items are stored; an
    unsealed job is not listed. `announced`: the notification of the end is published. `counted_at`
    is when `counts` were taken, `wake_at` when the scheduler has to look at the job next.

    `training` is set for a job of the type `TRAIN_MODEL`. Its items are the images, whose metadata
    has their `label`, and as the last one the fit. Its `model` is the base model.
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
    name: str = ""
    retry_of: str = ""
    webhook: JobWebhook | None = None
    training: Training | None = None

    @property
    def decided(self) -> bool:
        """Whether the job has a model, so that it can only end as completed."""
        return self.training is not None and bool(self.training.model)

    @property
    def fit_position(self) -> int:
        """The position of the fit among the items of a training job."""
        return self.counts.total - 1

    @property
    def sort_key(self) -> str:
        """Orders the tenant's jobs, newest first; unique there."""
        return sort_key(self.created_at, self.key.id)

    @property
    def progress(self) -> int:
        """Percent of the items that have ended, rounded down; 100 only at `completed`."""
        if self.status is JobStatus.COMPLETED:
            return 100
        return min(99, 100 * self.counts.completed // max(1, self.counts.total))

    @property
    def cancelled_items(self) -> int:
        return self.counts.open if self.status.terminal else 0

    def over(self, now: datetime) -> bool:
        """Whether no item may begin any more: the job has ended, or its deadline has passed."""
        late = self.deadline is not None and self.deadline <= now and not self.decided
        return self.status.terminal or late


@dataclass(frozen=True, slots=True)
class JobItem:
    """One image of a job. `image_hash` is empty if there was no image to hash."""

    position: int
    image_hash: str
    name: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    state: ItemState = ItemState.OPEN
    error: RecordError | None = None

    @property
    def may_retry(self) -> bool:
        """Whether another job may classify the image, given that the job of this item has ended."""
        if not self.image_hash or self.state is ItemState.SUCCEEDED:
            return False
        return self.error is None or self.error.retryable


def complete_item(item: JobItem, error: RecordError | None) -> JobItem | None:
    """End an item: as failed with `error`, otherwise as succeeded. None if it has ended.

    An item that has failed with a retryable error can still succeed, by a new attempt at its image.
    """
    repaired = error is None and item.error is not None and item.error.retryable
    if item.state is not ItemState.OPEN and not repaired:
        return None
    state = ItemState.SUCCEEDED if error is None else ItemState.FAILED
    return replace(item, state=state, error=error)


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Selects jobs of a tenant. An empty text selects all; `owner`, those of that API key."""

    tenant: str
    status: str = ""
    type: str = ""
    owner: str | None = None


def new_job_id() -> str:
    return secrets.token_hex(16)


def job_id_for(tenant: str, owner: str, idempotency_key: str) -> str:
    """The id of the job that this caller creates with this idempotency key."""
    facts = "\n".join((tenant, owner, idempotency_key))
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def new_job(
    key: JobKey,
    owner: str,
    model: str,
    total: int,
    now: datetime,
    *,
    priority: Priority = Priority.NORMAL,
    fingerprint: str = "",
    not_before: datetime | None = None,
    deadline: datetime | None = None,
    notify_email: str = "",
    name: str = "",
    training: Training | None = None,
    retry_of: str = "",
    webhook: JobWebhook | None = None,
    policy: JobPolicy = POLICY,
) -> Job:
    """A job whose items are not stored yet. With `training`, it trains a model."""
    return Job(
        key=key,
        owner=owner,
        type=BATCH_PREDICT if training is None else TRAIN_MODEL,
        model=model,
        priority=priority,
        counts=Counts(total),
        created_at=now,
        updated_at=now,
        counted_at=now,
        wake_at=now + _seconds(policy.seal_timeout),
        fingerprint=fingerprint,
        not_before=not_before,
        deadline=deadline,
        notify_email=notify_email,
        name=name,
        retry_of=retry_of,
        training=training,
        webhook=webhook,
    )


# --- Transitions. ---------------------------------------------------------------------------------
#
# What a client reads from an answer is durable. A power loss may undo the newest counts: the items
# are counted again.


@transition(durable=True)
def seal(job: Job, now: datetime, policy: JobPolicy = POLICY) -> Job | None:
    """Note that all items are stored: from now on the job is listed, and the scheduler starts it.

    Refused if the creation took so long that the scheduler is about to delete the job.
    """
    if job.sealed or job.status.terminal:
        return None
    wake = job.not_before or now + _seconds(policy.announce_after)
    return replace(job, sealed=True, updated_at=now, wake_at=_first(job, wake))


@transition(durable=False)
def note_webhook(job: Job, now: datetime, status: int | None) -> Job | None:
    """Note the status of the last answer of the job's own webhook."""
    if job.webhook is None or job.webhook.status == status:
        return None
    return replace(job, webhook=replace(job.webhook, status=status))


@transition(durable=True)
def start(job: Job, now: datetime, policy: JobPolicy = POLICY) -> Job | None:
    """Begin to publish the items. Refused unless the job is sealed, pending, and may begin."""
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


def count_is_due(job: Job, now: datetime, interval: timedelta, *, any_open: bool) -> bool:
    """Whether to count the items again: once per `interval`, and at once if no item is open.

    Also at once for a job that was cancelled, because no later event would count its last items.
    """
    return not any_open or job.status.terminal or job.counted_at + interval <= now


@transition(durable=False)
def update_counts(
    job: Job,
    now: datetime,
    counts: Counts,
    interval: timedelta = timedelta(),
    policy: JobPolicy = POLICY,
) -> Job | None:
    """Set the newest count of the items. Completes the job if no item is open.

    Refused if it is not due (`count_is_due`), if nothing has changed, or if one of the numbers is
    older than the job's. Items that a worker was classifying when the job was cancelled still
    count, and failed items that succeed in a new attempt; the status stays.
    """
    due = count_is_due(job, now, interval, any_open=counts.open > 0)
    if not job.sealed or not due or counts.older_than(job.counts):
        return None
    if job.status.terminal or counts.open:
        if counts == job.counts:
            return None
        after = _changed(job, now, counts=counts, counted_at=now)
        if job.status is not JobStatus.RUNNING:
            return after
        return replace(after, wake_at=_first(job, now + _seconds(policy.stale_after)))
    return _ended(replace(job, counts=counts, counted_at=now), JobStatus.COMPLETED, now, policy)


@transition(durable=True)
def cancel(
    job: Job, now: datetime, error: RecordError | None = None, policy: JobPolicy = POLICY
) -> Job | None:
    """End as `cancelled`: no further item begins. `error` is the reason, if not a client's request.

    Refused if the job has ended, or has decided on its model.
    """
    if job.status.terminal or job.decided:
        return None
    return _ended(job, JobStatus.CANCELLED, now, policy, error)


@transition(durable=True)
def fail(job: Job, now: datetime, error: RecordError, policy: JobPolicy = POLICY) -> Job | None:
    """End as `failed`: the job could not be run.

    Refused if the job has ended, or has decided on its model.
    """
    if job.status.terminal or job.decided:
        return None
    return _ended(job, JobStatus.FAILED, now, policy, error)


@transition(durable=True)
def retry(job: Job, now: datetime, policy: JobPolicy = POLICY) -> Job | None:
    """Begin a new attempt at a job that could not be run. Items that have ended stay as they are.

    Refused unless the job has failed with a retryable error and has time left.
    """
    began = max(job.created_at, job.not_before or job.created_at)
    late = job.deadline is not None and job.deadline <= now
    late = late or began + _seconds(policy.max_duration) <= now
    failed = job.status is JobStatus.FAILED and job.error is not None and job.error.retryable
    if not failed or late or not job.sealed:
        return None
    return _changed(
        job,
        now,
        status=JobStatus.PENDING,
        error=None,
        started_at=None,
        completed_at=None,
        announced=False,
        wake_at=_first(job, now + _seconds(policy.announce_after)),
    )


@transition(durable=True)
def decide_model(job: Job, now: datetime, model: str, accuracy: float) -> Job | None:
    """Decide which version a training job makes. From now on, it cannot be cancelled or fail.

    The version is added to its model afterwards, as often as it takes. So the model appears once
    or not at all, although it is in another store. Refused if the job is over, or has decided.
    """
    if job.training is None or job.decided or job.status is not JobStatus.RUNNING or job.over(now):
        return None
    training = replace(job.training, model=model, accuracy=accuracy)
    return _changed(job, now, training=training)


@transition(durable=True)
def mark_announced(job: Job, now: datetime, policy: JobPolicy = POLICY) -> Job | None:
    """Note that the notification of the end is published. Refused unless the job has ended."""
    if not job.status.terminal or job.announced:
        return None
    return replace(job, announced=True, wake_at=_expiry(job, policy))


@transition(durable=True)
def reschedule(job: Job, now: datetime, seen: datetime, policy: JobPolicy = POLICY) -> Job | None:
    """Set the next `wake_at`, for a scheduler that acts on the job. `seen` is the one that it read.

    Refused if `wake_at` has changed since: of several schedulers, one acts. The next time is soon,
    in case this one fails. It doubles if the job is to be run: a job may only wait behind
    others, and each time publishes it again. An unsealed job fails, so that it is not sealed later.
    """
    if job.wake_at != seen or job.wake_at > now:
        return None
    wake = now + _seconds(policy.announce_after)
    if not (job.sealed or job.status.terminal):
        return _changed(job, now, status=JobStatus.FAILED, wake_at=wake)
    if due_action(job, now, policy) is Action.RUN:
        wake = now + _run_interval(job, now, policy)
    elif job.announced:
        wake = max(wake, _expiry(job, policy))
    if job.deadline is not None and not job.over(now):
        wake = min(wake, job.deadline)
    return replace(job, wake_at=wake)


def _run_interval(job: Job, now: datetime, policy: JobPolicy) -> timedelta:
    """The time until a job without progress is run again: as long as it has waited so far."""
    waited = now - max(job.updated_at, job.not_before or job.updated_at)
    if job.status is JobStatus.RUNNING:
        least, most = policy.stale_after, policy.max_duration / 14
    else:
        least, most = policy.announce_after, policy.stale_after
    return max(_seconds(least), min(waited, _seconds(most)))


class Action(StrEnum):
    """What the scheduler does with a job that is due."""

    WAIT = "wait"
    RUN = "run"  # publish `RunJob`: to begin, or because there was no progress
    CANCEL = "cancel"  # the deadline has passed
    EXPIRE = "expire"  # the job exceeds `JobPolicy.max_duration`
    ANNOUNCE = "announce"
    DELETE = "delete"  # the retention is over, or the job was never sealed


def due_action(job: Job, now: datetime, policy: JobPolicy = POLICY) -> Action:
    """What the scheduler does with the job at `now`."""
    began = max(job.created_at, job.not_before or job.created_at)
    cases = (
        (job.wake_at > now, Action.WAIT),
        (not job.sealed, Action.DELETE),
        (job.status.terminal and not job.announced, Action.ANNOUNCE),
        (job.status.terminal and _expiry(job, policy) <= now, Action.DELETE),
        (job.status.terminal, Action.WAIT),
        (job.over(now), Action.CANCEL),
        (began + _seconds(policy.max_duration) <= now and not job.decided, Action.EXPIRE),
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
    """A change that a watcher should see: it raises the revision."""
    return replace(job, revision=job.revision + 1, updated_at=now, **changes)  # type: ignore[arg-type]


def _first(job: Job, moment: datetime) -> datetime:
    """`moment`, or the deadline if that is earlier."""
    return moment if job.deadline is None else min(moment, job.deadline)


def _expiry(job: Job, policy: JobPolicy) -> datetime:
    return (job.completed_at or job.updated_at) + _seconds(policy.retention)


def _seconds(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def check_count(images: int, most: int) -> None:
    """Raise BatchTooLarge if there are more than `most`."""
    if images > most:
        raise BatchTooLarge(
            f"A batch has at most {most} images. Send more in several batches.",
            extra={"max_items": most},
        )
