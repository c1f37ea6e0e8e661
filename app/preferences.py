"""The `Prefer` header (RFC 7240): how long the client would wait for a finished answer."""

from collections.abc import Iterable
from urllib.request import parse_http_list


def preferred_wait(values: Iterable[str], longest: float) -> float | None:
    """Seconds asked for by `wait=n`, at most `longest`; None where nothing sensible is asked.

    `values` are the values of every `Prefer` header. Of several waits the first counts, and what
    is unknown or malformed is ignored, as the RFC wants it.
    """
    for value in values:
        for preference in parse_http_list(value):
            name, _, rest = preference.partition("=")
            if name.strip().lower() != "wait":
                continue
            seconds = rest.partition(";")[0].strip().strip('"').strip()
            if seconds.isascii() and seconds.isdigit() and len(seconds) <= 9:
                return min(float(seconds), longest)
            return None
    return None


def applied(seconds: float) -> str:
    """The value of `Preference-Applied`."""
    return f"wait={seconds:g}"
