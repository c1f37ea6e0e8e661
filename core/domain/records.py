"""The record of one image under one model, and its transitions.

    pending -> queued -> running -> success | error        error (retryable) -> pending

Times are timezone-aware UTC.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from core.domain.policy import MAX_ACK_DEADLINE
from core.domain.priority import Priority
from core.domain.sort_keys import sort_key
from core.domain.transitions import transition

IMAGE_HASH = re.compile(r"[0-9a-f]{64}")
TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}@[0-9a-f]{12}")
PUBLIC_TENANT = "public"
# A lease that seems to last longer was granted before the clock was set back. Twice the longest
# lease of any policy, because the clock of the machine that granted it may be ahead.
MAX_LEASE = timedelta(seconds=2 * MAX_ACK_DEADLINE)
MAX_LABELS = 20  # labels that a record stores
UPLOAD_LOST = "upload_lost"  # error code: the image was never stored
GAVE_UP = "gave_up"  # error code: too many claims ended without a result


class Status(StrEnum):
    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"

    @property
    def terminal(self) -> bool:
        return self in (Status.SUCCESS, Status.ERROR)


@dataclass(frozen=True, slots=True)
class RecordKey:
    """Identifies a record. `image_hash` is SHA-256 in lower-case hex.

    Raises ValueError if a part is malformed.
    """

    tenant: str
    image_hash: str
    model: str

    def __post_init__(self) -> None:
        for value, pattern, name in (
            (self.tenant, TENANT, "tenant"),
            (self.image_hash, IMAGE_HASH, "image_hash"),
            (self.model, MODEL, "model"),
        ):
            if not pattern.fullmatch(value):
                raise ValueError(f"{name} is malformed")

    @property
    def image(self) -> "ImageKey":
        return ImageKey(self.tenant, self.image_hash)

    @property
    def blob_name(self) -> str:
        return blob_name(self.tenant, self.image_hash)


class ImageKey(NamedTuple):
    """Identifies an image under every model."""

    tenant: str
    image_hash: str

    @property
    def blob_name(self) -> str:
        return blob_name(self.tenant, self.image_hash)


# Stored instead of a thumbnail if the image cannot be decoded. No WebP begins like that.
NO_THUMBNAIL = b"none"


def thumbnail_name(tenant: str, image_hash: str) -> str:
    """The name of the blob with the image's thumbnail."""
    return f"{tenant}/thumbnails/{image_hash}"


def blob_name(tenant: str, image_hash: str) -> str:
    """The name of the image's blob: its hash, under its tenant."""
    return f"{tenant}/{image_hash}"


def embedding_name(tenant: str, base: str, image_hash: str) -> str:
    """The name of the blob with the image's embedding under a base model."""
    return f"{tenant}/embeddings/{base}/{image_hash}"


def head_name(tenant: str, model: str) -> str:
    """The name of the blob with the head of a version of a trained model, by its identity."""
    return f"{tenant}/heads/{model}"


def report_name(tenant: str, model: str) -> str:
    """The name of the blob with the training report of a version, by its identity."""
    return f"{tenant}/reports/{model}"


@dataclass(frozen=True, slots=True)
class Annotation:
    """One label or category. `index` 1 is the most likely; `confidence` is a probability."""

    index: int
    label: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Classification:
    """What a model says about an image; see `Record` for the fields.

    `thumbnail` is a small WebP of the image, empty if none was asked for or it cannot be made.
    """

    annotations: tuple[Annotation, ...]
    categories: tuple[Annotation, ...] = ()
    confident: bool | None = None
    thumbnail: bytes = field(default=b"", repr=False)
    output: str = ""

    @property
    def best(self) -> str:
        """The most likely label, or empty if there is none."""
        return self.annotations[0].label if self.annotations else ""


@dataclass(frozen=True, slots=True)
class RecordError:
    """Why a record failed. `retryable`: a new upload may try again."""

    code: str
    detail: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Record:
    """`attempts` counts claims. `token` is the fencing token: each claim raises it by one.

    `claims` counts those since `submitted_at` that the image itself may have ended: it is how a
    poisonous image is found. A claim that is released for another reason does not count.

    `categories` are broader labels, and `confident` is whether the best label is probably right by
    the model's thresholds: empty and None if the model has no categories or no threshold.
    `output` is JSON that the predictor of a bundle in Python returned, or empty.
    `submitted_at` is when the current attempt began: at the creation, or at the last retry.
    `republished_at` is when the reconciler last published the attempt's message again, or None.
    `error` is why the record ended as `error`; before its end, why the last delivery failed.
    `priority` is the most urgent that was asked for. `job` is the id of the job that alone asked
    for the image; it is empty once a client or a second job has asked as well.
    """

    key: RecordKey
    created_at: datetime
    updated_at: datetime
    submitted_at: datetime
    status: Status = Status.PENDING
    annotations: tuple[Annotation, ...] = ()
    categories: tuple[Annotation, ...] = ()
    confident: bool | None = None
    output: str = ""
    error: RecordError | None = None
    attempts: int = 0
    token: int = 0
    lease_expires_at: datetime | None = None
    priority: Priority = Priority.HIGH
    job: str = ""
    claims: int = 0
    republished_at: datetime | None = None

    @property
    def sort_key(self) -> str:
        """Orders the tenant's records, newest first. It never changes."""
        return sort_key(self.created_at, f"{self.key.image_hash[-20:]}{self.key.model[-12:]}")

    def leased(self, now: datetime) -> bool:
        """Whether a worker holds a lease on the record at `now`."""
        return (
            self.status is Status.RUNNING
            and self.lease_expires_at is not None
            and now < self.lease_expires_at <= now + MAX_LEASE
        )

    def may_republish(self, now: datetime, stale_after: timedelta) -> bool:
        """Whether the reconciler may publish the message of a stale record again at `now`.

        Its message may only wait behind others, or be refused for hours. Therefore the time between
        two publications doubles: it is as long as the attempt had lasted at the first of them.
        """
        if self.republished_at is None:
            return True
        wait = max(stale_after, self.republished_at - self.submitted_at)
        return self.republished_at + wait <= now

    @property
    def may_retry(self) -> bool:
        return self.status is Status.ERROR and self.error is not None and self.error.retryable

    def serves(self, priority: Priority, job: str = "") -> bool:
        """Whether a request of `job`, or of a client, changes nothing (`want`).

        True if the record has ended, or if it is as urgent and no other job's cancellation can end
        it.
        """
        if self.status.terminal:
            return True
        urgent = self.priority.most_urgent(priority) is self.priority
        return urgent and self.job in ("", job)


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to end one record until `expires_at`, proved by the fencing token.

    `submitted_at`, `job` and `claims` are the record's, the latter with this claim. `last_error` is
    why the last delivery failed, if it said so.
    """

    key: RecordKey
    token: int
    attempt: int
    expires_at: datetime = field(compare=False)
    submitted_at: datetime = field(compare=False)
    job: str = field(default="", compare=False)
    claims: int = field(default=1, compare=False)
    last_error: RecordError | None = field(default=None, compare=False)


# The steps that `advance` may take: forward, and only between states without a lease.
_ADVANCES = {(Status.PENDING, Status.QUEUED)}


def new_record(
    key: RecordKey, now: datetime, priority: Priority = Priority.HIGH, job: str = ""
) -> Record:
    return Record(
        key=key, created_at=now, updated_at=now, submitted_at=now, priority=priority, job=job
    )


# --- Transitions. ---------------------------------------------------------------------------------
#
# What a client reads from an answer is durable. A power loss may undo the newest `advance`,
# `claim`, `release`, `touch` and `republish`: it ends every process that acts on them, and the
# queue delivers the message again.


@transition(durable=False)
def advance(record: Record, now: datetime, from_: Status, to: Status) -> Record | None:
    """Move the status from `from_` to `to`. Refused in any other status.

    Raises ValueError if `to` does not follow `from_`.
    """
    if (from_, to) not in _ADVANCES:
        raise ValueError(f"no transition from {from_} to {to}")
    if record.status is not from_:
        return None
    return replace(record, status=to, updated_at=now)


@transition(durable=False)
def claim(record: Record, now: datetime, lease: timedelta) -> Record | None:
    """Grant a lease, with a new fencing token (`claim_of`). Refused if terminal or leased."""
    if record.status.terminal or record.leased(now):
        return None
    return replace(
        record,
        status=Status.RUNNING,
        attempts=record.attempts + 1,
        claims=record.claims + 1,
        token=record.token + 1,
        lease_expires_at=now + lease,
        updated_at=now,
    )


def claim_of(record: Record) -> Claim:
    """The claim that `claim` granted; `record` is the state that it returned."""
    assert record.lease_expires_at is not None
    return Claim(
        record.key,
        record.token,
        record.attempts,
        record.lease_expires_at,
        record.submitted_at,
        record.job,
        record.claims,
        record.error,
    )


@transition(durable=True)
def complete(
    record: Record,
    now: datetime,
    claim: Claim,
    annotations: Sequence[Annotation],
    *,
    categories: Sequence[Annotation] = (),
    confident: bool | None = None,
    output: str = "",
) -> Record | None:
    """End as `success`. Refused unless `claim` holds the current fencing token."""
    if not _holds(claim, record):
        return None
    return replace(
        record,
        status=Status.SUCCESS,
        annotations=tuple(annotations),
        categories=tuple(categories),
        confident=confident,
        output=output,
        error=None,
        lease_expires_at=None,
        updated_at=now,
    )


@transition(durable=True)
def fail(
    record: Record, now: datetime, claim: Claim, error: RecordError, *, only_for: str = ""
) -> Record | None:
    """End as `error`. Refused unless `claim` holds the current fencing token.

    With `only_for`, a job's id, also refused unless that job alone asked for the image.
    """
    if not _holds(claim, record) or (only_for and record.job != only_for):
        return None
    return _failed(record, now, error)


@transition(durable=True)
def fail_unleased(
    record: Record,
    now: datetime,
    error: RecordError,
    *,
    submitted_by: datetime | None = None,
    untouched_since: datetime | None = None,
    only_for: str = "",
) -> Record | None:
    """End as `error`, for a caller without a claim. Refused if terminal or leased.

    The options bind it to the state that the caller has read. `submitted_by`: refused if a later
    attempt was submitted after that time. `untouched_since`: refused if the record changed at that
    time or later. `only_for`, a job's id: refused unless that job alone asked for the image.
    """
    if (
        record.status.terminal
        or record.leased(now)
        or (submitted_by is not None and record.submitted_at > submitted_by)
        or (untouched_since is not None and record.updated_at >= untouched_since)
        or (only_for and record.job != only_for)
    ):
        return None
    return _failed(record, now, error)


@transition(durable=False)
def release(
    record: Record,
    now: datetime,
    claim: Claim,
    error: RecordError | None = None,
    *,
    counts: bool = False,
) -> Record | None:
    """End the lease early, so that the next delivery can claim the record at once.

    The record stays `running`. It keeps `error`, the reason, until it succeeds or is retried. With
    `counts`, the reason may be the image itself, and the claim counts (`Record.claims`). Refused
    unless `claim` holds the current fencing token.
    """
    if not _holds(claim, record):
        return None
    return replace(
        record,
        error=error or record.error,
        claims=record.claims if counts else max(0, record.claims - 1),
        lease_expires_at=now,
        updated_at=now,
    )


@transition(durable=True)
def retry(
    record: Record, now: datetime, priority: Priority = Priority.HIGH, job: str = ""
) -> Record | None:
    """Begin a new attempt, for `job` or for a client. Refused except after a retryable error.

    The token and the number of attempts go on rising.
    """
    if not record.may_retry:
        return None
    return replace(
        record,
        status=Status.PENDING,
        error=None,
        updated_at=now,
        submitted_at=now,
        claims=0,
        republished_at=None,
        priority=priority,
        job=job,
    )


@transition(durable=True)
def want(record: Record, now: datetime, priority: Priority, job: str = "") -> Record | None:
    """Note that `job`, or a client, also asks for the image. Refused if the record serves that.

    A caller to which this is granted publishes a message. `updated_at` stays: the record has made
    no progress.
    """
    if record.serves(priority, job):
        return None
    return replace(
        record,
        priority=record.priority.most_urgent(priority),
        job=job if record.job == job else "",
    )


@transition(durable=False)
def touch(record: Record, now: datetime, before: datetime) -> Record | None:
    """Set `updated_at`. Refused if terminal, leased, or updated at `before` or later.

    Of several callers that have read the same record, one is granted this.
    """
    if record.status.terminal or record.leased(now) or record.updated_at >= before:
        return None
    return replace(record, updated_at=now)


@transition(durable=False)
def republish(
    record: Record, now: datetime, before: datetime, stale_after: timedelta
) -> Record | None:
    """Note that the caller publishes the message again.

    Refused if `touch` is refused, and before `may_republish` allows it.
    """
    touched = touch(before)(record, now)
    if touched is None or not record.may_republish(now, stale_after):
        return None
    return replace(touched, republished_at=now)


def discardable(record: Record, claim: Claim) -> bool:
    """Whether the holder of `claim` may delete the record of an image that is deleted.

    True if one job alone asked for the image: it created the record while the image was deleted.
    The record of a client belongs to an upload that is about to store the bytes.
    """
    return bool(record.job) and _holds(claim, record)


def _failed(record: Record, now: datetime, error: RecordError) -> Record:
    return replace(record, status=Status.ERROR, error=error, lease_expires_at=None, updated_at=now)


def _holds(claim: Claim, record: Record) -> bool:
    # The token alone is not enough: tokens start again if a record is deleted and created.
    return (
        record.status is Status.RUNNING
        and record.key == claim.key
        and record.token == claim.token
        and record.submitted_at == claim.submitted_at
    )
