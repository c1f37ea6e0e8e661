"""Cursors of paged lists: a position, opaque to clients, so that its form may change."""

import base64
import binascii
import re

from core.errors import InvalidRequest

POSITION = re.compile(r"[0-9]{16}-[0-9a-f]{32}")  # those of `core.positions`


def encode_cursor(position: str) -> str:
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, form: re.Pattern[str]) -> str:
    """The position in a cursor, empty for none. Raises InvalidRequest unless it has the `form`."""
    if not cursor:
        return ""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        position = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        position = ""
    if not form.fullmatch(position):
        raise InvalidRequest("The parameter cursor is not one of ours.", extra={"field": "cursor"})
    return position
