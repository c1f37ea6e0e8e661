"""Texts that sort the newest first, so that any store can list and go on with one plain index."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END = 10**16 - 1  # microseconds; the year 2286


def position(moment: datetime, id_: str) -> str:
    """Unique if `id_` is; that of a younger moment sorts before that of an older one."""
    return f"{_place(moment)}-{id_}"


def older_than(moment: datetime) -> str:
    """The positions of what is older than `moment` sort after this, all others before it."""
    return f"{_place(moment)}."  # a dot sorts behind the dash of a position


def _place(moment: datetime) -> str:
    return f"{_END - (moment - _EPOCH) // timedelta(microseconds=1):016d}"
