"""Which of several representations a client would rather have (RFC 9110, 12.5.1)."""

from collections.abc import Iterable, Sequence
from urllib.request import parse_http_list


def preferred(accept: str, offered: Sequence[str]) -> str:
    """The media type out of `offered` that `accept` asks for most; the first where it says nothing.

    So it is where none is acceptable: a client can do more with an answer than with a refusal.
    """
    weights = {kind: _weight(accept, kind) for kind in offered}
    best = max(offered, key=lambda kind: weights[kind])
    return best if weights[best] > 0 else offered[0]


def _weight(accept: str, kind: str) -> float:
    """What the most specific range that matches `kind` says."""
    found = (-1, 0.0)
    for part in parse_http_list(accept):
        range_, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if range_ not in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
            continue
        found = max(found, (range_.count("*") * -1 + 2, _quality(parameters)))
    return found[1]


def _quality(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0


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
