"""The record of one image under one model, and the only transitions it can make.

    pending -> queued -> running -> success | error        error (retryable) -> pending

Stores keep records; they do not decide. Each function below takes a record and returns the next
one, or None where the transition is refused, and a store applies it inside a transaction. Times are
timezone-aware UTC.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from core.domain.policy import LONGEST_ACK_DEADLINE
from core.domain.priority import Priority

IMAGE_HASH = re.compile(r"[0-9a-f]{64}")
TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}@[0-9a-f]{12}")
PUBLIC_TENANT = "public"
# What seems to last longer was granted before the clock went back. Twice as long as any policy's,
# since the clock of who granted it may be ahead of ours.
LONGEST_LEASE = timedelta(seconds=2 * LONGEST_ACK_DEADLINE)
UPLOAD_LOST = "upload_lost"  # the code of a record whose image was never stored


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
    """Which image, of whom, under which model. `image_hash` is SHA-256 in lower-case hex."""

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
    def blob_name(self) -> str:
        return blob_name(self.tenant, self.image_hash)


def blob_name(tenant: str, image_hash: str) -> str:
    """Blobs are named by content, under their tenant."""
    return f"{tenant}/{image_hash}"


@dataclass(frozen=True, slots=True)
class Annotation:
    """One label. `index` starts at 1 with the most likely; `confidence` is a probability."""

    index: int
    label: str
    confidence: float


@dataclass(frozen=True, slots=True)
class RecordError:
    """Why a record failed; `retryable` says whether a new upload may try again."""

    code: str
    detail: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Record:
    """`attempts` counts claims. `token` is the fencing token: each claim raises it by one.

    `submitted_at` is when the wait for a result began: at the creation, or at the last retry.
    `error` is why the record ended as `error`; before its end, why the last delivery was refused.
    `priority` is the most urgent that anybody asked for. `job` is the one job that alone asked,
    empty as soon as anybody else has.
    """

    key: RecordKey
    created_at: datetime
    updated_at: datetime
    submitted_at: datetime
    status: Status = Status.PENDING
    annotations: tuple[Annotation, ...] = ()
    error: RecordError | None = None
    attempts: int = 0
    token: int = 0
    lease_expires_at: datetime | None = None
    priority: Priority = Priority.HIGH
    job: str = ""

    def leased(self, now: datetime) -> bool:
        """Whether a worker owns the record at `now`."""
        return (
            self.status is Status.RUNNING
            and self.lease_expires_at is not None
            and now < self.lease_expires_at <= now + LONGEST_LEASE
        )

    @property
    def may_retry(self) -> bool:
        return self.status is Status.ERROR and self.error is not None and self.error.retryable


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to finish one record until `expires_at`, proved by `token`.

    `submitted_at` is the record's: since then a client waits. So is `job`.
    """

    key: RecordKey
    token: int
    attempt: int
    expires_at: datetime = field(compare=False)
    submitted_at: datetime = field(compare=False)
    job: str = field(default="", compare=False)


# Which steps `advance` may take: forward, and only between states that no worker owns.
_ADVANCES = {(Status.PENDING, Status.QUEUED)}


def new_record(
    key: RecordKey, now: datetime, priority: Priority = Priority.HIGH, job: str = ""
) -> Record:
    return Record(
        key=key, created_at=now, updated_at=now, submitted_at=now, priority=priority, job=job
    )


def advanced(record: Record, from_: Status, to: Status, now: datetime) -> Record | None:
    """Compare-and-set of the status: refused unless the record is in `from_`."""
    if (from_, to) not in _ADVANCES:
        raise ValueError(f"no transition from {from_} to {to}")
    if record.status is not from_:
        return None
    return replace(record, status=to, updated_at=now)


def claimed(record: Record, now: datetime, lease: timedelta) -> Record | None:
    """Owned by a new claimant; refused when terminal or under a live lease."""
    if record.status.terminal or record.leased(now):
        return None
    return replace(
        record,
        status=Status.RUNNING,
        attempts=record.attempts + 1,
        token=record.token + 1,
        lease_expires_at=now + lease,
        updated_at=now,
    )


def claim_of(record: Record) -> Claim:
    """The claim that `claimed` has just granted."""
    assert record.lease_expires_at is not None
    return Claim(
        record.key,
        record.token,
        record.attempts,
        record.lease_expires_at,
        record.submitted_at,
        record.job,
    )


def completed(
    record: Record, claim: Claim, annotations: Sequence[Annotation], now: datetime
) -> Record | None:
    """Success; refused unless `claim` holds the current fencing token."""
    if not _owns(record, claim):
        return None
    return replace(
        record,
        status=Status.SUCCESS,
        annotations=tuple(annotations),
        error=None,
        lease_expires_at=None,
        updated_at=now,
    )


def failed(
    record: Record,
    claim: Claim | None,
    error: RecordError,
    now: datetime,
    *,
    submitted_by: datetime | None = None,
    untouched_since: datetime | None = None,
    only_for: str = "",
) -> Record | None:
    """Error. Without a claim (dead letter, reconciler) refused while a worker owns the record.

    With `only_for`, a job's id, refused where anyone but that job asked for the image.
    Who fails it without a claim has read something before. `submitted_by` refuses where a later
    attempt has begun since, `untouched_since` where the record changed at that time or later.
    """
    if claim is None:
        refused = (
            record.status.terminal
            or record.leased(now)
            or (submitted_by is not None and record.submitted_at > submitted_by)
            or (untouched_since is not None and record.updated_at >= untouched_since)
        )
    else:
        refused = not _owns(record, claim)
    if refused or (only_for and record.job != only_for):
        return None
    return replace(record, status=Status.ERROR, error=error, lease_expires_at=None, updated_at=now)


def released(
    record: Record, claim: Claim, now: datetime, error: RecordError | None = None
) -> Record | None:
    """Given up unfinished, because of `error`: still `running`, but anyone may claim it at once."""
    if not _owns(record, claim):
        return None
    return replace(record, error=error or record.error, lease_expires_at=now, updated_at=now)


def retried(
    record: Record, now: datetime, priority: Priority = Priority.HIGH, job: str = ""
) -> Record | None:
    """A new attempt, out of a retryable error only. Tokens keep rising across attempts."""
    if not record.may_retry:
        return None
    return replace(
        record,
        status=Status.PENDING,
        error=None,
        updated_at=now,
        submitted_at=now,
        priority=priority,
        job=job,
    )


def wanted(record: Record, priority: Priority, job: str = "") -> Record | None:
    """Somebody else asks for it as well: `job`, or a client by itself.

    Refused when terminal, and where it is as urgent already and belongs to no other job. Where this
    is granted, whoever asked publishes a message of its own.
    """
    urgency = record.priority.most_urgent(priority)
    owner = record.job if record.job == job else ""
    if record.status.terminal or (urgency is record.priority and owner == record.job):
        return None
    return replace(record, priority=urgency, job=owner)


def touched(record: Record, before: datetime, now: datetime) -> Record | None:
    """Marked as looked after; refused when terminal, owned, or moved since `before`."""
    if record.status.terminal or record.leased(now) or record.updated_at >= before:
        return None
    return replace(record, updated_at=now)


def _owns(record: Record, claim: Claim) -> bool:
    # Tokens begin anew with a record that was deleted and created again.
    return (
        record.status is Status.RUNNING
        and record.token == claim.token
        and record.submitted_at == claim.submitted_at
    )
