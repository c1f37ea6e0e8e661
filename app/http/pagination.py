"""Pages of lists: their size, and the cursor of the next page.

A cursor is an encoded position. It is opaque to clients, so that its format may change.
"""

import base64
import binascii
import re
from typing import Annotated

from pydantic import Field

from core.errors import InvalidRequest

POSITION = re.compile(r"[0-9]{16}-[0-9a-f]{32}")  # positions of `core.domain.sort_keys`
NextCursor = Annotated[
    str | None, Field(description="`cursor` of the next page; null on the last page")
]


def encode_cursor(position: str) -> str:
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, form: re.Pattern[str]) -> str:
    """Return the position in a cursor, empty for an empty one.

    Raises InvalidRequest if the position does not match `form`.
    """
    if not cursor:
        return ""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        position = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        position = ""
    if not form.fullmatch(position):
        raise InvalidRequest(
            "The parameter cursor is not one that this service issued.", extra={"field": "cursor"}
        )
    return position
