"""The announced length of a request body (RFC 9110, 8.6)."""

from starlette.requests import Request

_MAX_DIGITS = 18  # Python raises ValueError for numbers of thousands of digits


def announced_bytes(request: Request) -> int | None:
    """Return `Content-Length`, or None if it is missing or not a number."""
    text = request.headers.get("content-length", "")
    if not (text.isascii() and text.isdigit()):
        return None
    return int((text.lstrip("0") or "0")[: _MAX_DIGITS + 1])
