"""An API key, and its transitions. Times are timezone-aware UTC."""

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from core.domain.key_tokens import KEY_ID
from core.domain.principals import Principal, Scope
from core.domain.rate_limits import Rate
from core.domain.records import TENANT
from core.domain.transitions import transition

NAME = re.compile(r"[^\x00-\x1f\x7f]{1,100}")
KEY_CACHE_SECONDS = 30.0  # that a process trusts a verified key: a revoked one may work that long
USE_NOTE_INTERVAL = timedelta(minutes=1)  # the resolution of `last_used_at`


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key. `digest` is the keyed hash of its current secret.

    After a rotation the previous secret is valid until `previous_expires_at`. `rate` and
    `daily_quota` are limits of this key; None means those of the service. Raises ValueError if a
    field is malformed.
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
        """Whether the key is neither revoked nor expired at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def good_until(self, digests: Sequence[bytes], now: datetime) -> datetime | None:
        """When the secret with one of these digests ends, or None if none is valid at `now`.

        Makes every comparison, in constant time, whichever of them matches.
        """
        before = self.previous_digest or bytes(len(self.digest))
        current, previous = (
            sum(hmac.compare_digest(stored, digest) for digest in digests) > 0
            for stored in (self.digest, before)
        )
        end = self.expires_at or datetime.max.replace(tzinfo=now.tzinfo)
        if not current:
            if not previous or self.previous_digest is None or self.previous_expires_at is None:
                return None
            end = min(end, self.previous_expires_at)
        return end if self.revoked_at is None and now < end else None


# --- Transitions. Those that grant or end access are durable. -------------------------------------


@transition(durable=True)
def rotate(key: ApiKey, now: datetime, digest: bytes, overlap: timedelta) -> ApiKey | None:
    """Set a new secret. The old one stays valid for `overlap`. Refused unless the key is active."""
    if not key.active(now):
        return None
    return replace(
        key,
        digest=digest,
        rotated_at=now,
        previous_digest=key.digest if overlap > timedelta() else None,
        previous_expires_at=now + overlap if overlap > timedelta() else None,
    )


@transition(durable=True)
def revoke(key: ApiKey, now: datetime) -> ApiKey | None:
    """End every secret of the key. Refused if it is revoked."""
    if key.revoked_at is not None:
        return None
    return replace(key, revoked_at=now, previous_digest=None, previous_expires_at=None)


@transition(durable=False)
def note_use(key: ApiKey, now: datetime, at: datetime) -> ApiKey | None:
    """Set `last_used_at` to `at`. Refused within `USE_NOTE_INTERVAL` of the stored time."""
    if key.last_used_at is not None and at < key.last_used_at + USE_NOTE_INTERVAL:
        return None
    return replace(key, last_used_at=at)
