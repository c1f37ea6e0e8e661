"""Keys and tenants in one API process: shares of limits, and unwritten usage counts."""

import asyncio
import math
from collections.abc import Iterable
from datetime import UTC, date, datetime

from core.domain.api_keys import ApiKey
from core.domain.principals import Principal
from core.domain.rate_limits import DAY, Grant, Limit, Rate, TenantLimits
from core.domain.usage import Usage, UsageBatch

RawHeaders = tuple[tuple[bytes, bytes], ...]


class Share:
    """This process's share of one limit in the current window. Times are seconds since 1970.

    `owner` has the limit, in the store: a key's id, or `tenant:` and a tenant.
    """

    __slots__ = ("available", "end", "limit", "lock", "owed", "owner", "remaining")

    def __init__(self, owner: str, limit: Limit) -> None:
        self.owner = owner
        self.limit = limit
        self.available = 0  # units that this process may still let through; below 0: used too many
        self.remaining = 0  # units that no process had reserved at the last refill
        self.owed = 0  # units that count in later windows
        self.end = 0.0  # the end of the window
        self.lock = asyncio.Lock()

    def consume(self, now: float) -> bool:
        """Consume one request. Returns False if the share must be refilled first."""
        if self.available > 0 and now < self.end:
            self.available -= 1
            return True
        return False

    def exhausted(self, now: float) -> bool:
        """Whether a refill before `end` would be empty."""
        # A window that ends later than the next one means that the clock was set back.
        current = now < self.end <= now + 2 * self.limit.seconds
        return current and self.remaining == 0 and self.available <= 0

    def refill(self, grant: Grant) -> None:
        self.available, self.remaining, self.owed = grant.count, grant.left, grant.owed
        self.end = float(grant.window + self.limit.seconds)

    @property
    def left(self) -> int:
        """The units that remain in the window, as far as this process knows."""
        return max(0, self.available + self.remaining)

    def seconds_left(self, now: float) -> int:
        """The seconds until the window ends, and with it those that are owed."""
        later = self.owed // self.limit.quota * self.limit.seconds if self.owed else 0
        return max(0, math.ceil(self.end - now) + later)


class LimitShares:
    """The shares of all limits of one owner. Those of unchanged limits are kept."""

    __slots__ = ("_owner", "_prefix", "shares")

    def __init__(self, owner: str, prefix: str = "") -> None:
        """`prefix` tells the names of the limits from those of another owner."""
        self._owner = owner
        self._prefix = prefix
        self.shares: tuple[Share, ...] = ()

    def update(self, rate: Rate | None, daily_quota: int | None) -> None:
        """Apply the limits. None and a quota of 0: no limit."""
        limits = [Limit(f"{self._prefix}rate", rate.count, rate.seconds)] if rate else []
        if daily_quota:
            limits.append(Limit(f"{self._prefix}day", daily_quota, DAY, strict=True))
        kept = {share.limit: share for share in self.shares}
        self.shares = tuple(kept.get(limit) or Share(self._owner, limit) for limit in limits)

    def idle(self, since: datetime) -> bool:
        """Whether all windows ended before `since`."""
        return all(share.end <= since.timestamp() for share in self.shares)


class TenantState(LimitShares):
    """The limits that the keys of one tenant share, in one process."""

    __slots__ = ()

    def __init__(self, tenant: str) -> None:
        super().__init__(f"tenant:{tenant}")

    def apply(self, limits: TenantLimits, rate: Rate | None, daily_quota: int) -> None:
        """Apply the tenant's limits, or `rate` and `daily_quota`, those of the service."""
        quota = daily_quota if limits.daily_quota is None else limits.daily_quota
        self.update(limits.rate or rate, quota)


class KeyState:
    """One key in one process."""

    __slots__ = (
        *("_counts", "_day", "_own", "_policy", "_remaining", "_tenant", "_unwritten"),
        *("key", "principal", "shares", "stored_used_at", "used_at"),
    )

    def __init__(self, key: ApiKey, tenant: TenantState) -> None:
        self.used_at: datetime | None = None
        self.stored_used_at = key.last_used_at
        self._tenant = tenant
        self._own = LimitShares(key.id, "key-")
        self._day = 0
        self._counts = [0, 0, 0, 0]  # requests, images, bytes, refused
        self._unwritten: list[UsageBatch] = []  # of earlier days, or whose write failed
        self.update(key)

    def update(self, key: ApiKey) -> None:
        """Apply the stored key, and the present limits of its tenant."""
        self.key = key
        self.principal: Principal = key.principal
        self._own.update(key.rate, key.daily_quota)
        self.shares = (*self._own.shares, *self._tenant.shares)
        limits = [share.limit for share in self.shares]
        self._policy = ", ".join(f'"{x.name}";q={x.quota};w={x.seconds}' for x in limits).encode()
        self._remaining = ", ".join(f'"{x.name}";r=%d;t=%d' for x in limits).encode()

    def headers(self, now: float) -> RawHeaders:
        """`RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers."""
        if not self.shares:
            return ()
        values: list[int] = []
        for share in self.shares:
            values += (share.left, share.seconds_left(now))
        remaining = self._remaining % tuple(values)
        return ((b"ratelimit-policy", self._policy), (b"ratelimit", remaining))

    def idle(self, since: datetime) -> bool:
        """Whether the key was last used before `since`, and nothing here is still needed."""
        return (
            (self.used_at is None or self.used_at < since)
            and self._own.idle(since)
            and self._tenant.idle(since)
            and not self._unwritten
            and not any(self._counts)
        )

    def count_request(self, now: float) -> None:
        self._start_day(now)
        self._counts[0] += 1

    def count_image(self, size: int) -> None:
        self._counts[1] += 1
        self._counts[2] += size

    def count_refused(self, now: float) -> None:
        self._start_day(now)
        self._counts[3] += 1

    def unwritten(self) -> list[UsageBatch]:
        """The counts that are not written. A batch does not change once it is in this list."""
        self._end_day()
        return list(self._unwritten)

    def written(self, batches: Iterable[UsageBatch]) -> None:
        """Drop batches that the store has added."""
        done = {batch.id for batch in batches}
        self._unwritten = [batch for batch in self._unwritten if batch.id not in done]

    def _start_day(self, now: float) -> None:
        day = int(now // DAY)
        if day != self._day:
            self._end_day()
            self._day = day

    def _end_day(self) -> None:
        if any(self._counts):
            owner = self.principal
            counts = Usage(owner.tenant, owner.key_id, _date(self._day), *self._counts)
            self._unwritten.append(UsageBatch(counts))
            self._counts = [0, 0, 0, 0]


def _date(day: int) -> date:
    return datetime.fromtimestamp(day * DAY, UTC).date()
