"""Paged lists: how many at once, and the cursor to go on from.

A cursor is a position, opaque to clients, so that its form may change.
"""

import base64
import binascii
import re

from fastapi import Request

from core.errors import InvalidRequest

POSITION = re.compile(r"[0-9]{16}-[0-9a-f]{32}")  # those of `core.domain.sort_keys`
_LIMIT = re.compile(r"[0-9]{1,9}")


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


def page_limit(request: Request, default: int, most: int) -> int:
    """The query parameter `limit`. Raises InvalidRequest unless it is from 1 to `most`."""
    text = request.query_params.get("limit", str(default))
    if not (_LIMIT.fullmatch(text) and 1 <= int(text) <= most):
        raise InvalidRequest(
            f"The parameter limit is a number from 1 to {most}.", extra={"field": "limit"}
        )
    return int(text)
