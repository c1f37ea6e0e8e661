"""Types of query parameters."""

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query
from pydantic import BeforeValidator, WithJsonSchema

from app.http.timestamps import DATE_TIME

_DIGITS = re.compile(r"[0-9]{1,9}")


def _only_digits(value: object) -> object:
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise ValueError("Input should be a number")
    return value


def _time(value: object) -> datetime | None:
    if not value:
        return None
    try:
        time = datetime.fromisoformat(str(value))
        time = time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("Input should be a time, such as 2026-11-21T09:30:00Z") from None
    if not 1970 < time.year < 2200:
        raise ValueError("The time is out of range")
    return time


# A number, without the other notations that pydantic accepts.
Digits = Annotated[int, BeforeValidator(_only_digits)]
# ISO 8601, by default in UTC. An empty one counts as missing.
Time = Annotated[datetime | None, BeforeValidator(_time), WithJsonSchema(DATE_TIME)]
# Marks a parameter whose empty value counts as missing.
EMPTY_IS_MISSING = BeforeValidator(lambda value: value or None)
Cursor = Annotated[str, Query(description="`next_cursor` of the previous page")]
