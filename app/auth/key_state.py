"""The state of one key in one API process: shares of its limits, and unwritten usage counts."""

import asyncio
import math
from datetime import UTC, date, datetime

from core.domain.api_keys import ApiKey
from core.domain.principals import Principal
from core.domain.rate_limits import DAY, Grant, Limit, Rate
from core.domain.usage import Usage

RawHeaders = tuple[tuple[bytes, bytes], ...]


class Share:
    """This process's share of one limit in the current window. Times are seconds since 1970."""

    __slots__ = ("available", "end", "limit", "lock", "remaining")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.available = 0  # requests that this process may still let through
        self.remaining = 0  # requests that no process had reserved at the last refill
        self.end = 0.0  # of the window
        self.lock = asyncio.Lock()

    def consume(self, now: float) -> bool:
        """Consume one request; False if the share must be refilled first."""
        if self.available > 0 and now < self.end:
            self.available -= 1
            return True
        return False

    def exhausted(self, now: float) -> bool:
        """Whether a refill before `end` would be empty."""
        # A window that ends later than the next one means that the clock was set back.
        current = now < self.end <= now + 2 * self.limit.seconds
        return current and self.remaining == 0 and self.available == 0

    def refill(self, grant: Grant) -> None:
        self.available, self.remaining = grant.count, grant.left
        self.end = float(grant.window + self.limit.seconds)

    def seconds_left(self, now: float) -> int:
        return max(0, math.ceil(self.end - now))


class KeyState:
    """One key in one process."""

    __slots__ = (
        *("_counts", "_day", "_earlier", "_policy"),
        *("key", "principal", "shares", "stored_used_at", "used_at"),
    )

    def __init__(self, key: ApiKey, rate: Rate | None, daily_quota: int) -> None:
        """`rate` and `daily_quota` are the service's limits; limits of the key override them."""
        self.used_at: datetime | None = None
        self.stored_used_at = key.last_used_at
        self.shares: tuple[Share, ...] = ()
        self._policy = b""
        self._day = 0
        self._counts = [0, 0, 0, 0]  # requests, images, bytes, refused
        self._earlier: list[Usage] = []  # counts of earlier days, or of failed writes
        self.update(key, rate, daily_quota)

    def update(self, key: ApiKey, rate: Rate | None, daily_quota: int) -> None:
        """Apply the stored key. Shares of unchanged limits are kept."""
        self.key = key
        self.principal: Principal = key.principal
        rate = key.rate or rate
        quota = daily_quota if key.daily_quota is None else key.daily_quota
        limits = [Limit("rate", rate.count, rate.seconds)] if rate else []
        limits += [Limit("day", quota, DAY)] if quota else []
        kept = {share.limit: share for share in self.shares}
        self.shares = tuple(kept.get(limit) or Share(limit) for limit in limits)
        self._policy = ", ".join(f'"{x.name}";q={x.quota};w={x.seconds}' for x in limits).encode()

    def headers(self, now: float) -> RawHeaders:
        """`RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers."""
        if not self.shares:
            return ()
        states = [
            b'"%b";r=%d;t=%d'
            % (
                share.limit.name.encode(),
                share.available + share.remaining,
                share.seconds_left(now),
            )
            for share in self.shares
        ]
        return ((b"ratelimit-policy", self._policy), (b"ratelimit", b", ".join(states)))

    def idle(self, since: datetime) -> bool:
        """Whether the key was last used before `since`, and nothing here is still needed."""
        return (
            (self.used_at is None or self.used_at < since)
            and all(share.end <= since.timestamp() for share in self.shares)
            and not self._earlier
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

    def take_counts(self) -> list[Usage]:
        """Return the counts since the last call, and reset them."""
        self._end_day()
        taken, self._earlier = self._earlier, []
        return taken

    def restore_counts(self, counts: list[Usage]) -> None:
        """Add counts that could not be written."""
        by_day = {usage.day: usage for usage in self._earlier}
        for usage in counts:
            by_day[usage.day] = usage + by_day[usage.day] if usage.day in by_day else usage
        self._earlier = list(by_day.values())

    def _start_day(self, now: float) -> None:
        day = int(now // DAY)
        if day != self._day:
            self._end_day()
            self._day = day

    def _end_day(self) -> None:
        if any(self._counts):
            owner = self.principal
            counts = Usage(owner.tenant, owner.key_id, _date(self._day), *self._counts)
            self.restore_counts([counts])
            self._counts = [0, 0, 0, 0]


def _date(day: int) -> date:
    return datetime.fromtimestamp(day * DAY, UTC).date()
