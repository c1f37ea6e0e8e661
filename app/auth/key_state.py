"""What one API process knows of one key: its limits' shares, and counts not yet written."""

import asyncio
import math
from datetime import UTC, date, datetime

from core.domain.api_keys import ApiKey
from core.domain.principals import Principal
from core.domain.rate_limits import DAY, Grant, Limit, Rate
from core.domain.usage import Usage

RawHeaders = tuple[tuple[bytes, bytes], ...]


class Share:
    """This process's share of one limit in the present window. Times are seconds since 1970."""

    __slots__ = ("end", "left", "limit", "lock", "mine")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.mine = 0  # still to be spent here
        self.left = 0  # for everyone, when we last asked
        self.end = 0.0
        self.lock = asyncio.Lock()

    def spend(self, now: float) -> bool:
        """Use one up; False where a new share is needed first."""
        if self.mine > 0 and now < self.end:
            self.mine -= 1
            return True
        return False

    def used_up(self, now: float) -> bool:
        """Whether asking for more is useless until `end`."""
        here = now < self.end <= now + 2 * self.limit.seconds  # else the clock was set back
        return here and self.left == 0 and self.mine == 0

    def receive(self, grant: Grant) -> None:
        self.mine, self.left = grant.count, grant.left
        self.end = float(grant.window + self.limit.seconds)

    def seconds_left(self, now: float) -> int:
        return max(0, math.ceil(self.end - now))


class Account:
    """One key in one process."""

    __slots__ = (
        *("_counts", "_day", "_policy", "_rolled"),
        *("key", "noted_at", "principal", "shares", "used_at"),
    )

    def __init__(self, key: ApiKey, rate: Rate | None, daily_quota: int) -> None:
        """`rate` and `daily_quota` are the service's; the key's own win over them."""
        self.used_at: datetime | None = None
        self.noted_at = key.last_used_at  # in the store
        self.shares: tuple[Share, ...] = ()
        self._policy = b""
        self._day = 0
        self._counts = [0, 0, 0, 0]  # requests, images, bytes, refused
        self._rolled: list[Usage] = []
        self.update(key, rate, daily_quota)

    def update(self, key: ApiKey, rate: Rate | None, daily_quota: int) -> None:
        """Take over what the store says now; shares of limits that stay the same are kept."""
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
        """`RateLimit-Policy` and `RateLimit`, as draft-ietf-httpapi-ratelimit-headers has them."""
        if not self.shares:
            return ()
        states = [
            b'"%b";r=%d;t=%d'
            % (share.limit.name.encode(), share.mine + share.left, share.seconds_left(now))
            for share in self.shares
        ]
        return ((b"ratelimit-policy", self._policy), (b"ratelimit", b", ".join(states)))

    def count_request(self, now: float) -> None:
        self._roll(now)
        self._counts[0] += 1

    def count_image(self, size: int) -> None:
        self._counts[1] += 1
        self._counts[2] += size

    def count_refused(self, now: float) -> None:
        self._roll(now)
        self._counts[3] += 1

    def take_counts(self) -> list[Usage]:
        """What has been counted since the last time."""
        self._keep()
        taken, self._rolled = self._rolled, []
        return taken

    def give_back(self, counts: list[Usage]) -> None:
        """Counts that could not be written."""
        by_day = {usage.day: usage for usage in self._rolled}
        for usage in counts:
            by_day[usage.day] = usage + by_day[usage.day] if usage.day in by_day else usage
        self._rolled = list(by_day.values())

    def _roll(self, now: float) -> None:
        day = int(now // DAY)
        if day != self._day:
            self._keep()
            self._day = day

    def _keep(self) -> None:
        if any(self._counts):
            owner = self.principal
            self.give_back([Usage(owner.tenant, owner.key_id, _date(self._day), *self._counts)])
            self._counts = [0, 0, 0, 0]


def _date(day: int) -> date:
    return datetime.fromtimestamp(day * DAY, UTC).date()
