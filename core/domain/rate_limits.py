"""Rate limits of API keys, and how several processes share one limit.

A limit counts requests in fixed windows. A process reserves an eighth of the remaining requests at
a time, and counts them in memory. All processes together never admit more than the limit. Near its
end, a process reserves single requests. The store gets a few dozen requests a window, whatever the
load.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Self

DAY = 86_400
# Requests in a day: more than any service answers, and far below the range of a stored number.
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
        """Raises ValueError where the text does not have this form."""
        found = _RATE.fullmatch(text.strip())
        if found is None:
            raise ValueError("a rate has the form 600/minute; second and hour are known too")
        return cls(int(found[1]), _SECONDS[found[2]])

    def __str__(self) -> str:
        unit = next(name for name, seconds in _SECONDS.items() if seconds == self.seconds)
        return f"{self.count}/{unit}"


@dataclass(frozen=True, slots=True)
class Limit:
    """`quota` requests in each window of `seconds`. Windows start at multiples of that, in UTC."""

    name: str
    quota: int
    seconds: int

    def window(self, now: float) -> int:
        """The start of the window that includes `now`; both in seconds since 1970."""
        return int(now // self.seconds) * self.seconds


@dataclass(frozen=True, slots=True)
class Allowance:
    """The stored state of one limit of one key: the requests reserved in a window."""

    window: int
    taken: int


@dataclass(frozen=True, slots=True)
class Grant:
    """A reservation of `count` requests in `window`; `left` requests remain to be reserved."""

    window: int
    count: int
    left: int


def reserve(before: Allowance | None, limit: Limit, now: datetime) -> tuple[Allowance, Grant]:
    """Reserve the next share. `count` is 0 where no requests remain.

    Clocks differ: a window that another machine has just started is the current one. A window
    further ahead comes from a wrong clock, and is replaced.
    """
    window = limit.window(now.timestamp())
    taken = 0
    if before is not None and window <= before.window <= window + limit.seconds:
        window, taken = before.window, before.taken
    left = max(0, limit.quota - taken)
    count = min(left, max(1, left // _SHARES))
    return Allowance(window, taken + count), Grant(window, count, left - count)
