"""Which of several representations a client would rather have (RFC 9110, 12.5.1)."""

from collections.abc import Sequence
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
