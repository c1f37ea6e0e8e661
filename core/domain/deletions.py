"""The deletion of an image: a tombstone that uploads, workers and the reconciler see.

    deleting -> deleted -> cleaning -> cleaned -> (forgotten)

A deletion removes the image's records in the transaction that writes the tombstone, then the
image's bytes. Each beginning raises `token`. An upload reads the tombstone before it stores the
bytes, and again after it has published its message: if it finds another token, a deletion ran in
between and may have deleted what the upload stored, so the upload repeats its steps. Times are
timezone-aware UTC.

A store may commit a beginning and lose the answer. `owner` identifies the call that begins a
deletion, so that the call recognises its deletion when it repeats the transition.
"""

import secrets
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from core.domain.policy import DeliveryPolicy
from core.domain.records import ImageKey

LEASE = timedelta(minutes=1)  # the time that a process has to complete a deletion
# Then bytes without a record are deleted once more: an upload may have died after it stored them.
CLEAN_UP_AFTER = timedelta(minutes=15)
# As long as a message about the image may wait in the queue.
REMEMBER = timedelta(seconds=DeliveryPolicy().retention)


class Stage(StrEnum):
    DELETING = "deleting"
    DELETED = "deleted"
    CLEANING = "cleaning"
    CLEANED = "cleaned"


@dataclass(frozen=True, slots=True)
class Deletion:
    """`token` rises with each beginning. `wake_at` is when the reconciler acts on it next.

    `owner` is the call that began it. It is empty for a deletion of an earlier version.
    """

    image: ImageKey
    token: int
    stage: Stage
    wake_at: datetime
    owner: str = ""

    @property
    def in_progress(self) -> bool:
        """Whether a process is deleting the image's bytes, or has died before it did."""
        return self.stage in (Stage.DELETING, Stage.CLEANING)

    def leased(self, now: datetime) -> bool:
        """Whether another process has time left to complete the deletion."""
        return self.in_progress and now < self.wake_at <= now + 2 * LEASE

    def begun_by(self, owner: str) -> bool:
        """Whether the call `owner` has begun the deletion, and nothing has ended it since."""
        return self.in_progress and bool(owner) and self.owner == owner


def new_owner() -> str:
    """The identity of a call that is about to begin a deletion."""
    return secrets.token_hex(8)


def begin(before: Deletion | None, image: ImageKey, now: datetime, owner: str) -> Deletion | None:
    """A deletion that the caller has to complete. None while another process completes one.

    Returns `before` if `owner` has begun it: the transition is repeated.
    """
    if before is not None and before.begun_by(owner):
        return before
    if before is not None and before.leased(now):
        return None
    token = 1 if before is None else before.token + 1
    return Deletion(image, token, Stage.DELETING, now + LEASE, owner)


def end(before: Deletion | None, ended: Deletion, now: datetime) -> Deletion | None:
    """Note that `ended` is complete. None if another deletion has begun since."""
    if before is None or before.token != ended.token or not before.in_progress:
        return None
    if before.stage is Stage.CLEANING:
        return replace(before, stage=Stage.CLEANED, wake_at=now + REMEMBER)
    return replace(before, stage=Stage.DELETED, wake_at=now + CLEAN_UP_AFTER)


def clean_up(before: Deletion, now: datetime, owner: str, *, recorded: bool) -> Deletion | None:
    """The next stage of a deletion that is due and not in progress. None: forget it.

    `recorded` is whether the image has a record: then its bytes belong to a later upload.
    Otherwise, the caller deletes bytes that have no record, and ends the deletion again.
    """
    if before.stage is Stage.CLEANED:
        return None
    if recorded:
        return replace(before, stage=Stage.CLEANED, wake_at=now + REMEMBER)
    return replace(
        before, token=before.token + 1, stage=Stage.CLEANING, wake_at=now + LEASE, owner=owner
    )
