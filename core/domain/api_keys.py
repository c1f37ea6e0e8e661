"""The record of an API key, and the only changes that it can undergo.

As with images, stores keep these and do not decide: each function takes a key and returns the next
one, or None where the change is refused. Times are timezone-aware UTC.
"""

import hmac
import re
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from core.domain.key_tokens import KEY_ID
from core.domain.principals import Principal, Scope
from core.domain.rate_limits import Rate
from core.domain.records import TENANT

NAME = re.compile(r"[^\x00-\x1f\x7f]{1,100}")
TOUCH_EVERY = timedelta(minutes=1)  # `last_used_at` is no finer than that


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key. `digest` is the keyed hash of its current secret.

    After a rotation the secret before it is good until `previous_expires_at`. `rate` and
    `daily_quota` are this key's own limits; None means the service's.
    """

    id: str
    tenant: str
    name: str
    scopes: frozenset[Scope]
    digest: bytes = field(repr=False)
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    rotated_at: datetime | None = None
    previous_digest: bytes | None = field(default=None, repr=False)
    previous_expires_at: datetime | None = None
    rate: Rate | None = None
    daily_quota: int | None = None

    def __post_init__(self) -> None:
        for value, pattern, name in (
            (self.id, KEY_ID, "id"),
            (self.tenant, TENANT, "tenant"),
            (self.name, NAME, "name"),
        ):
            if not pattern.fullmatch(value):
                raise ValueError(f"{name} is malformed")

    @property
    def principal(self) -> Principal:
        return Principal(self.tenant, self.id, self.scopes)

    def active(self, now: datetime) -> bool:
        """Whether the key is good at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def good_until(self, digest: bytes, now: datetime) -> datetime | None:
        """Until when the secret with this digest is good; None where it is not, or not any more.

        Both comparisons are made, in constant time, whichever of them matches.
        """
        current = hmac.compare_digest(self.digest, digest)
        previous = hmac.compare_digest(self.previous_digest or bytes(len(digest)), digest)
        end = self.expires_at or datetime.max.replace(tzinfo=now.tzinfo)
        if not current:
            if not previous or self.previous_digest is None or self.previous_expires_at is None:
                return None
            end = min(end, self.previous_expires_at)
        return end if self.revoked_at is None and now < end else None


def rotated(key: ApiKey, digest: bytes, overlap: timedelta, now: datetime) -> ApiKey | None:
    """With a new secret; the old one stays good for `overlap`. Refused unless the key is good."""
    if not key.active(now):
        return None
    return replace(
        key,
        digest=digest,
        rotated_at=now,
        previous_digest=key.digest if overlap > timedelta() else None,
        previous_expires_at=now + overlap if overlap > timedelta() else None,
    )


def revoked(key: ApiKey, now: datetime) -> ApiKey | None:
    """Never good again. Refused where that has happened before."""
    if key.revoked_at is not None:
        return None
    return replace(key, revoked_at=now, previous_digest=None, previous_expires_at=None)


def touched(key: ApiKey, at: datetime) -> ApiKey | None:
    """Used at `at`. Refused within a minute of the last use that was noted: that is near enough."""
    if key.last_used_at is not None and at < key.last_used_at + TOUCH_EVERY:
        return None
    return replace(key, last_used_at=at)
