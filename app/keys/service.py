"""Creates, rotates and revokes keys, for the routes and the command."""

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import structlog

from core.clock import Clock, rfc3339, utc_now
from core.domain import api_keys
from core.domain.api_keys import ApiKey
from core.domain.key_tokens import KEY_ID, KeyHasher
from core.domain.principals import Scope
from core.domain.rate_limits import MAX_DAILY_QUOTA, Rate, TenantLimits
from core.domain.records import TENANT
from core.errors import Conflict, Forbidden, InvalidRequest, NotFound
from core.ports import KeyStore

log = structlog.get_logger(__name__)

MAX_KEYS = 1_000  # active keys of a tenant
LONGEST_OVERLAP = timedelta(days=30)
DEFAULT_OVERLAP = timedelta(hours=24)
_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_UNKNOWN = "There is no such key."


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key to create. For limits that are None, those of the service apply."""

    tenant: str
    name: str
    scopes: frozenset[Scope]
    expires_at: datetime | None = None
    rate: Rate | None = None
    daily_quota: int | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """A key and its text, which is stored nowhere."""

    key: ApiKey
    text: str = field(repr=False)


class Keys:
    """The keys of one store. With `tenant`, methods see the keys of that tenant only."""

    def __init__(self, store: KeyStore, hasher: KeyHasher, clock: Clock = utc_now) -> None:
        self._store = store
        self._hasher = hasher
        self._clock = clock

    async def create(self, wanted: Wanted, creator: ApiKey | None = None) -> Issued:
        """Create a key, with at most the limits, the expiry and the scopes of its `creator`.

        Raises InvalidRequest if a part of `wanted` is invalid, Forbidden if the creator may not
        grant it, and Conflict if the tenant has too many keys.
        """
        now = self._clock()
        if creator is not None:
            wanted = _granted_by(creator, wanted)
        if sum(key.active(now) for key in await self._store.keys(wanted.tenant)) >= MAX_KEYS:
            raise Conflict(f"The tenant has {MAX_KEYS} active keys, the most that are allowed.")
        if wanted.expires_at is not None and wanted.expires_at <= now:
            raise InvalidRequest("The key would already be expired.")
        if not 0 <= (wanted.daily_quota or 0) <= MAX_DAILY_QUOTA:
            raise InvalidRequest(f"The daily quota must be between 0 and {MAX_DAILY_QUOTA}.")
        token = self._hasher.new()
        try:
            key = ApiKey(
                id=token.key_id,
                tenant=wanted.tenant,
                name=wanted.name,
                scopes=wanted.scopes,
                digest=token.digest,
                created_at=now,
                expires_at=wanted.expires_at,
                rate=wanted.rate,
                daily_quota=wanted.daily_quota,
            )
        except ValueError as wrong:
            raise InvalidRequest(f"The key's {wrong}.") from None
        if not await self._store.create(key):
            raise Conflict("The generated id already exists. Retry the request.")
        log.info(
            "key created",
            key=key.id,
            tenant=key.tenant,
            scopes=[s.value for s in sorted(key.scopes)],
        )
        return Issued(key, token.text)

    async def limits(self, tenant: str) -> TenantLimits:
        """The limits of a tenant. None: that of the service applies."""
        return await self._store.limits(tenant)

    async def set_limits(self, tenant: str, limits: TenantLimits) -> None:
        """Replace the limits of a tenant. Raises InvalidRequest.

        They take effect within `KEY_CACHE_SECONDS`.
        """
        if not TENANT.fullmatch(tenant):
            raise InvalidRequest("The tenant is malformed.")
        if not 0 <= (limits.daily_quota or 0) <= MAX_DAILY_QUOTA:
            raise InvalidRequest(f"The daily quota must be between 0 and {MAX_DAILY_QUOTA}.")
        await self._store.set_limits(tenant, limits)
        log.info("tenant limits set", tenant=tenant, quota=limits.daily_quota)

    async def list(self, tenant: str | None = None) -> list[ApiKey]:
        """Return the keys, oldest first, including expired and revoked ones."""
        return await self._store.keys(tenant)

    async def rotate(
        self, key_id: str, overlap: timedelta = DEFAULT_OVERLAP, tenant: str | None = None
    ) -> Issued:
        """Give the key a new text. The old text stays valid for `overlap`.

        Raises NotFound, InvalidRequest, and Conflict if the key is revoked or expired.
        """
        if not timedelta() <= overlap <= LONGEST_OVERLAP:
            raise InvalidRequest(f"The overlap must be at most {LONGEST_OVERLAP.days} days.")
        await self._find(key_id, tenant)
        token = self._hasher.new(key_id)
        key = await self._store.change(key_id, api_keys.rotate(token.digest, overlap))
        if key is None:
            raise Conflict("The key is revoked or has expired.")
        log.info("key rotated", key=key.id, tenant=key.tenant, overlap=overlap.total_seconds())
        return Issued(key, token.text)

    async def revoke(self, key_id: str, tenant: str | None = None) -> None:
        """Revoke the key. Raises NotFound.

        It takes effect within `KEY_CACHE_SECONDS`. Repeating it changes nothing.
        """
        key = await self._find(key_id, tenant)
        if await self._store.change(key_id, api_keys.revoke()) is not None:
            log.info("key revoked", key=key.id, tenant=key.tenant)

    async def _find(self, key_id: str, tenant: str | None) -> ApiKey:
        key = await self._store.get(key_id) if KEY_ID.fullmatch(key_id) else None
        if key is None or (tenant is not None and key.tenant != tenant):
            raise NotFound(_UNKNOWN)
        return key


def _granted_by(creator: ApiKey, wanted: Wanted) -> Wanted:
    """`wanted` with the creator's limits and expiry if it has none.

    Raises Forbidden if it has more than its creator.
    """
    if Scope.OPERATOR in wanted.scopes and Scope.OPERATOR not in creator.scopes:
        raise _exceeds("scopes", "the scope 'operator'")
    if creator.expires_at is not None:
        if wanted.expires_at is None:
            wanted = replace(wanted, expires_at=creator.expires_at)
        elif wanted.expires_at > creator.expires_at:
            raise _exceeds("expires", f"an expiry after {rfc3339(creator.expires_at)}")
    if creator.rate is not None:
        rate = wanted.rate or creator.rate
        if rate.count * creator.rate.seconds > creator.rate.count * rate.seconds:
            raise _exceeds("rate_limit", f"a rate above {creator.rate}")
        wanted = replace(wanted, rate=rate)
    if creator.daily_quota:
        quota = creator.daily_quota if wanted.daily_quota is None else wanted.daily_quota
        if not 0 < quota <= creator.daily_quota:
            raise _exceeds("daily_quota", f"a daily quota above {creator.daily_quota}")
        wanted = replace(wanted, daily_quota=quota)
    return wanted


def _exceeds(field: str, what: str) -> Forbidden:
    return Forbidden(f"The creating key may not grant {what}.", extra={"field": field})


def duration(text: str) -> timedelta:
    """Parse a duration such as `90d`, `12h`, `30m` or `45s`. Raises ValueError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError("a duration is written like 90d, 12h, 30m or 45s")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def moment(text: str, now: datetime) -> datetime:
    """Parse a time: a duration from `now`, or a date or time (ISO 8601, by default in UTC).

    Returns it in UTC. Raises ValueError.
    """
    if _DURATION.fullmatch(text.strip()):
        return now + duration(text)
    try:
        at = datetime.fromisoformat(text.strip())
        # The last hours of year 9999 in a zone west of UTC raise OverflowError.
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ValueError("a time is written like 90d, 2027-01-31 or 2027-01-31T12:00Z") from None
