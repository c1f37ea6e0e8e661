"""How long a request says that its body is (RFC 9110, 8.6)."""

from starlette.requests import Request

_DIGITS = 18  # of a length that nobody sends; Python refuses to read numbers of thousands


def announced_bytes(request: Request) -> int | None:
    """The bytes of `Content-Length`, or None where it is missing or no number."""
    text = request.headers.get("content-length", "")
    if not (text.isascii() and text.isdigit()):
        return None
    return int((text.lstrip("0") or "0")[: _DIGITS + 1])
