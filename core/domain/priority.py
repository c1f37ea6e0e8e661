"""How urgent a piece of work is."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")
FAIR_TURNS = 8  # every so many turns one of the less urgent goes first, so that it moves at all


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


def in_turn(waiting: Sequence[T], turn: int) -> Sequence[T]:
    """`waiting`, given with the most urgent first, in the order in which they go in this turn.

    That is as they are, but in every `FAIR_TURNS`th turn: then one of the others goes first, each
    of them in its turn.
    """
    rounds, rest = divmod(turn, FAIR_TURNS)
    if rest or len(waiting) <= 1:
        return waiting
    first = 1 + rounds % (len(waiting) - 1)
    return (waiting[first], *waiting[:first], *waiting[first + 1 :])
