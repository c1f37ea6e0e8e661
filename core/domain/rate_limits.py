"""Rate limits and quotas of tenants and keys, and how several processes share one limit.

A limit counts requests in fixed windows, and each further image of a request as one more. A process
reserves an eighth of what remains at a time, and counts it in memory. All processes together never
admit more than the limit. Near its end, a process reserves single requests. The store gets a few
dozen requests a window, whatever the load.

A request with more images than what remains of a rate is admitted, and the rest counts in the next
windows. A request with more images than what remains of a quota is refused.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Self

DAY = 86_400
# Units in a day: more than any service answers, and far below the range of a stored number.
MAX_DAILY_QUOTA = 10**12
_SHARES = 8
_RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour)")
_SECONDS = {"second": 1, "minute": 60, "hour": 3600}


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` requests in `seconds`, written as in `600/minute`."""

    count: int
    seconds: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError if the text does not have this form."""
        found = _RATE.fullmatch(text.strip())
        if found is None:
            raise ValueError("a rate has the form 600/minute; second and hour are known too")
        return cls(int(found[1]), _SECONDS[found[2]])

    def __str__(self) -> str:
        unit = next(name for name, seconds in _SECONDS.items() if seconds == self.seconds)
        return f"{self.count}/{unit}"


@dataclass(frozen=True, slots=True)
class Limit:
    """`quota` units in each window of `seconds`. Windows start at multiples of that, in UTC.

    A unit is a request, or a further image of one. `strict`: a request with more images than what
    remains is refused. `divided`: processes reserve shares of it.
    """

    name: str
    quota: int
    seconds: int
    strict: bool = False
    divided: bool = True

    def window(self, now: float) -> int:
        """The start of the window that includes `now`; both in seconds since 1970."""
        return int(now // self.seconds) * self.seconds


@dataclass(frozen=True, slots=True)
class Allowance:
    """The stored state of one limit: the units reserved in a window.

    `owed` units count in the next windows.
    """

    window: int
    taken: int
    owed: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """A reservation of `count` units in `window`; `left` units remain to be reserved.

    `owed` units count in the next windows. `refused`: a strict limit has less than what the request
    needs, and nothing has changed.
    """

    window: int
    count: int
    left: int
    owed: int = 0
    refused: bool = False


def reserve(
    before: Allowance | None, limit: Limit, now: datetime, spent: int = 0
) -> tuple[Allowance, Grant]:
    """Count `spent` units, and reserve the next share. `count` is 0 if nothing remains.

    Clocks differ: a window that another machine has just started is the current one. A window
    further ahead comes from a wrong clock, and is replaced.
    """
    window = limit.window(now.timestamp())
    taken = owed = 0
    if before is not None and before.window <= window + limit.seconds:
        if before.window >= window:
            window, taken, owed = before.window, before.taken, before.owed
        else:
            earlier = (window - before.window) // limit.seconds - 1
            owed = max(0, before.owed - earlier * limit.quota)
            taken = min(owed, limit.quota)
            owed -= taken
    left = max(0, limit.quota - taken)
    if limit.strict and spent > left:
        return Allowance(window, taken, owed), Grant(window, 0, left, owed, refused=True)
    owed += max(0, spent - left)
    taken += min(spent, left)
    left = max(0, limit.quota - taken)
    count = min(left, max(1, left // _SHARES)) if limit.divided else 0
    return Allowance(window, taken + count, owed), Grant(window, count, left - count, owed)


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """The limits that all keys of a tenant share. None: the limit of the service applies."""

    rate: Rate | None = None
    daily_quota: int | None = None
