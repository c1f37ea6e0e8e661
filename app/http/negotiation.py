"""Content negotiation (RFC 9110, 12.5.1) and the preference `wait` (RFC 7240)."""

from collections.abc import Iterable, Sequence
from urllib.request import parse_http_list


def preferred_type(accept: str, offered: Sequence[str]) -> str:
    """Return the media type in `offered` with the highest quality in `accept`.

    Returns the first one if the header names none, or accepts none: a representation is more use
    to a client than a refusal.
    """
    weights = {kind: _quality_of(accept, kind) for kind in offered}
    best = max(offered, key=lambda kind: weights[kind])
    return best if weights[best] > 0 else offered[0]


def _quality_of(accept: str, kind: str) -> float:
    """Return the quality of the most specific range that matches `kind`."""
    found = (-1, 0.0)
    for part in parse_http_list(accept):
        range_, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if range_ not in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
            continue
        specificity = 2 - range_.count("*")
        found = max(found, (specificity, _quality(parameters)))
    return found[1]


def quality_of(header: str, name: str, wildcard: str) -> float:
    """Return the quality of `name` in a header such as Accept-Encoding; 0 if it is not listed."""
    found = {}
    for part in parse_http_list(header):
        listed, *parameters = (piece.strip().lower() for piece in part.split(";"))
        found[listed] = _quality(parameters)
    return found.get(name, found.get(wildcard, 0.0))


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
    """Return the seconds of `wait=n`, at most `longest`, or None if there is no valid one.

    `values` are those of every `Prefer` header. The first `wait` counts; unknown and malformed
    preferences are ignored, as the RFC requires.
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


def applied_wait(seconds: float) -> str:
    """Return the value of `Preference-Applied`."""
    return f"wait={seconds:g}"
