"""Sort keys: texts that sort the newest first, so that one plain index serves lists and pages."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END = 10**16 - 1  # microseconds; the year 2286


def sort_key(moment: datetime, id_: str) -> str:
    """Sorts before the keys of earlier moments. Unique if `id_` is."""
    return f"{_descending(moment)}-{id_}"


def bounds(since: datetime | None, before: datetime | None, after: str) -> tuple[str, str]:
    """The sort keys of moments at `since` or later and before `before` lie between these texts.

    Both are excluded. `after` is the sort key that ended the page before, or empty.
    """
    low = after if before is None else max(after, bound(before))
    return low, "~" if since is None else bound(since)


def bound(moment: datetime) -> str:
    """Sorts before the sort keys of earlier moments, and after those of `moment` and later ones."""
    return f"{_descending(moment)}."  # a dot sorts after the dash of a sort key


def _descending(moment: datetime) -> str:
    return f"{_END - (moment - _EPOCH) // timedelta(microseconds=1):016d}"
