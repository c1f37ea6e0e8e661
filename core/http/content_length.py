"""What the headers of a request say about its body (RFC 9110, 6.4 and 8.6)."""

from starlette.requests import Request
from starlette.types import Scope

_MAX_DIGITS = 18  # Python raises ValueError for numbers of thousands of digits


def announced_bytes(request: Request) -> int | None:
    """Return `Content-Length`, or None if it is missing or not a number."""
    text = request.headers.get("content-length", "")
    if not (text.isascii() and text.isdigit()):
        return None
    return int((text.lstrip("0") or "0")[: _MAX_DIGITS + 1])


def has_body(scope: Scope) -> bool:
    """Return whether the request has a body that is not empty, as far as its headers say."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            return True
    return False
