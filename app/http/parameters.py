"""Types of query parameters."""

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query
from pydantic import BeforeValidator, WithJsonSchema

from app.http.timestamps import DATE_TIME, parse_time

_DIGITS = re.compile(r"[0-9]{1,9}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
# https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")


def _only_digits(value: object) -> object:
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise ValueError("must be a whole number")
    return value


def _time(value: object) -> datetime | None:
    if not value:
        return None
    try:
        time = parse_time(str(value))
        time = time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("must be a time, such as 2026-11-21T09:30:00Z") from None
    if not 1970 < time.year < 2200:
        raise ValueError("must be between 1970 and 2200")
    return time


# A number, without the other notations that pydantic accepts.
Digits = Annotated[int, BeforeValidator(_only_digits)]
# ISO 8601, by default in UTC. An empty one counts as missing.
Time = Annotated[datetime | None, BeforeValidator(_time), WithJsonSchema(DATE_TIME)]


def _sha256(value: object) -> object:
    if isinstance(value, str) and not _SHA256.fullmatch(value):
        raise ValueError("must be the SHA-256 of an image's bytes: 64 hexadecimal digits")
    return value.lower() if isinstance(value, str) else value


# The SHA-256 of an image. Capital letters are accepted, and become lower case.
HASH_PATTERN = "^[0-9a-fA-F]{64}$"
HASH_SCHEMA = {"type": "string", "pattern": HASH_PATTERN}
Sha256 = Annotated[str, BeforeValidator(_sha256), WithJsonSchema(HASH_SCHEMA)]
# Marks a parameter whose empty value counts as missing.
EMPTY_IS_MISSING = BeforeValidator(lambda value: value or None)
# The same for a parameter that can be given several times.
EMPTY_ARE_MISSING = BeforeValidator(
    lambda values: [each for each in values if each] if isinstance(values, list) else values
)
Cursor = Annotated[str, Query(description="`next_cursor` of the previous page")]
