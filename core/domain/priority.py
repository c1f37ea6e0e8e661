"""The priority of work, and the order in which waiting work of several priorities is served."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")
FAIRNESS_INTERVAL = 8  # in every eighth round a lower priority goes first, so that none starves


class Priority(StrEnum):
    """`high` goes before `normal`, and `normal` before `low`."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def rank(self) -> int:
        """0 for the most urgent."""
        return _RANKS[self]

    def most_urgent(self, other: "Priority") -> "Priority":
        return min(self, other, key=lambda each: each.rank)


_RANKS = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}


def service_order(waiting: Sequence[T], round_: int) -> Sequence[T]:
    """The order in which to serve `waiting`, whose first element is the most urgent.

    The order is unchanged, except in every `FAIRNESS_INTERVAL`th round: then one of the others goes
    first, another one each time.
    """
    cycle, rest = divmod(round_, FAIRNESS_INTERVAL)
    if rest or len(waiting) <= 1:
        return waiting
    first = 1 + cycle % (len(waiting) - 1)
    return (waiting[first], *waiting[:first], *waiting[first + 1 :])
