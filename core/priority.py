"""How urgent a piece of work is."""

from enum import StrEnum


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
