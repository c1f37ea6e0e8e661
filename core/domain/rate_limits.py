"""How often a key may ask: limits as data, and how several processes share one limit.

A limit counts within fixed windows. Nobody asks the store for each request: a process takes a share
of what is left, an eighth, and spends it by itself. So no process, and no number of them together,
ever lets more through than the limit; near its end shares are of one; and the store is asked a few
dozen times a window, however many requests there are.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Self

DAY = 86_400
# Requests in a day: more than any service answers, and far from what a store's number holds.
MOST_DAILY_QUOTA = 10**12
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
        """ValueError where it is not of the form."""
        found = _RATE.fullmatch(text.strip())
        if found is None:
            raise ValueError("a rate is written as in 600/minute; second and hour are known too")
        return cls(int(found[1]), _SECONDS[found[2]])

    def __str__(self) -> str:
        unit = next(name for name, seconds in _SECONDS.items() if seconds == self.seconds)
        return f"{self.count}/{unit}"


@dataclass(frozen=True, slots=True)
class Limit:
    """`quota` requests in each window of `seconds`; windows begin at multiples of that, in UTC."""

    name: str
    quota: int
    seconds: int

    def window(self, now: float) -> int:
        """The window that `now` (seconds since 1970) is in, by the second of its beginning."""
        return int(now // self.seconds) * self.seconds


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a store remembers of one limit of one key: how much of a window is taken."""

    window: int
    taken: int


@dataclass(frozen=True, slots=True)
class Grant:
    """`count` requests for whoever asked, within `window`; `left` remain for everyone."""

    window: int
    count: int
    left: int


def granted(before: Allowance | None, limit: Limit, now: datetime) -> tuple[Allowance, Grant]:
    """The next share. `count` is 0 where nothing is left.

    Clocks differ: a window that another machine has just begun counts as the present one. One
    that lies further ahead is of a clock that was wrong, and is begun anew.
    """
    window = limit.window(now.timestamp())
    taken = 0
    if before is not None and window <= before.window <= window + limit.seconds:
        window, taken = before.window, before.taken
    left = max(0, limit.quota - taken)
    count = min(left, max(1, left // _SHARES))
    return Allowance(window, taken + count), Grant(window, count, left - count)
