"""Images that wait for workers: a simulation, and the formula that it is checked against.

One queue, first come first served, any number of slots that each work on one image at a time, and
optionally a control loop that adds slots after a delay, as Cloud Run does. Seeded: the same
arguments give the same figures.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

Rate = Callable[[float], float]  # arrivals a second at a time


@dataclass(frozen=True)
class Service:
    """Time one image takes: `fixed` seconds and an exponential rest of mean `rest`."""

    fixed: float
    rest: float

    @property
    def mean(self) -> float:
        return self.fixed + self.rest

    @property
    def variation(self) -> float:
        """Squared coefficient of variation: 1 for exponential times, 0 for constant ones."""
        return (self.rest / self.mean) ** 2

    def draw(self, source: random.Random) -> float:
        return self.fixed + self.rest * exponential(source)


@dataclass(frozen=True)
class Scaling:
    """Every `interval` seconds, sizes the pool so that `target` of the slots are busy.

    A new slot works after `delay` seconds. The queue should be empty after `drain` seconds.
    Slots are added in steps of `step`, the slots of an instance.
    """

    most: int
    step: int = 1
    interval: float = 5.0
    delay: float = 3.0
    target: float = 0.6
    drain: float = 5.0

    def wanted(self, busy: int, waiting: int, service: Service) -> int:
        """The slots for the images in progress and in the queue."""
        needed = busy + waiting * service.mean / self.drain
        return min(self.most, math.ceil(needed / self.target))


@dataclass
class Outcome:
    """Seconds from arrival to end of each image, when each arrived, and slots by time."""

    arrived: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    slots: list[tuple[float, int]] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        return quantile(self.latency, share)


def quantile(values: list[float], share: float) -> float:
    """The nearest-rank quantile. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def simulate(
    rate: float | Rate,
    service: Service,
    slots: int,
    seconds: float,
    *,
    highest: float = 0.0,
    warm_up: float = 0.0,
    scaling: Scaling | None = None,
    seed: int = 1,
) -> Outcome:
    """Simulates random arrivals for `seconds` and follows each image to its end.

    A changing `rate` needs `highest`, which it never exceeds. Arrivals before `warm_up` count for
    nothing but the others' waits.
    """
    source = random.Random(seed)
    arrivals = _Arrivals(rate, highest, seconds, source)
    outcome = Outcome(slots=[(0.0, slots)])
    waiting: deque[float] = deque()
    busy, ready, coming = 0, slots, 0
    # (time, order, kind): of two events at one time, the one that was planned first.
    events: list[tuple[float, int, str]] = []
    order = 0

    def plan(time: float, kind: str) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (time, order, kind))

    def plan_arrival() -> None:
        time = arrivals.next()
        if time is not None:
            plan(time, "arrival")

    def start(now: float) -> None:
        nonlocal busy
        while waiting and busy < ready:
            arrived = waiting.popleft()
            busy += 1
            end = now + service.draw(source)
            plan(end, "end")
            if arrived >= warm_up:
                outcome.arrived.append(arrived)
                outcome.waited.append(now - arrived)
                outcome.latency.append(end - arrived)

    plan_arrival()
    if scaling is not None:
        plan(scaling.interval, "look")
    while events:
        now, _, kind = heapq.heappop(events)
        if kind == "arrival":
            waiting.append(now)
            plan_arrival()
        elif kind == "end":
            busy -= 1
        elif kind == "ready" and scaling is not None:
            ready, coming = ready + scaling.step, coming - scaling.step
            outcome.slots.append((now, ready))
        elif kind == "look" and scaling is not None:
            wanted = scaling.wanted(busy, len(waiting), service)
            while ready + coming < wanted:
                coming += scaling.step
                plan(now + scaling.delay, "ready")
            if now < seconds:
                plan(now + scaling.interval, "look")
        start(now)
    return outcome


class _Arrivals:
    """A Poisson process. For a changing rate, it drops some arrivals of a faster process."""

    def __init__(
        self, rate: float | Rate, highest: float, seconds: float, source: random.Random
    ) -> None:
        self._rate: Rate = rate if callable(rate) else lambda time: rate
        self._highest = highest or self._rate(0.0)
        self._seconds = seconds
        self._source = source
        self._now = 0.0

    def next(self) -> float | None:
        while True:
            self._now += exponential(self._source) / self._highest
            if self._now >= self._seconds:
                return None
            if self._source.random() * self._highest < self._rate(self._now):
                return self._now


def exponential(source: random.Random) -> float:
    """Of mean 1. By our own formula, so that every Python draws the same."""
    return -math.log(1.0 - source.random())


def erlang_c(slots: int, load: float) -> float:
    """The share of images that wait, for exponential service times.

    `load` is arrivals a second times seconds an image, below `slots`. A. K. Erlang, 1917; in the
    recursive form of Erlang B, which needs no factorials.
    """
    if not 0 <= load < slots:
        raise ValueError("the queue grows without bound: the load must be below the slots")
    blocked = 1.0
    for count in range(1, slots + 1):
        blocked = load * blocked / (count + load * blocked)
    return slots * blocked / (slots - load * (1 - blocked))


def mean_wait(slots: int, rate: float, service: Service) -> float:
    """Seconds in the queue on average: Erlang's formula, scaled for other than exponential times.

    Exact for exponential times and for one slot (Pollaczek and Khinchine), else the approximation
    of Allen and Cunneen.
    """
    load = rate * service.mean
    exponential = erlang_c(slots, load) * service.mean / (slots - load)
    return exponential * (1 + service.variation) / 2
