"""Times in requests, and in responses: RFC 3339 with milliseconds."""

import re
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import PlainSerializer, WithJsonSchema

from core.clock import rfc3339

# The forms in which client libraries write a time, beside those that Python reads:
# 2027-01-01 10:00:00 +0000, as Rust's chrono and Ruby do; +0000 UTC, as Go does;
# Z[UTC] and +01:00[Europe/Berlin], as Java does; and a `+` that a query has turned into a space.
_ZONE = re.compile(r"\[[A-Za-z0-9_+/:-]{1,64}\]$")
_UTC = re.compile(r"(?P<offset>[+-]\d\d:?\d\d)? ?(?:UTC|GMT)$", re.IGNORECASE)
_SPACED_OFFSET = re.compile(r"(?<=[\d.]) (?P<sign>[+-]?)(?P<digits>\d\d:?\d\d)$")
_LEAP_SECOND = re.compile(r"(?<=\d\d:\d\d:)60")
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME = re.compile(r"(?=.*\d[Tt ]\d)[0-9TtWwZz:.,+ -]{10,48}", re.ASCII)
DATE_TIME = {"type": "string", "format": "date-time", "examples": ["2026-11-21T09:30:00.125Z"]}
Timestamp = Annotated[datetime, PlainSerializer(rfc3339), WithJsonSchema(DATE_TIME)]


def parse_time(text: str) -> datetime:
    """Parse a time in one of the forms of RFC 3339 and ISO 8601, or as client libraries write it.

    The result has no time zone if the text has no offset from UTC. Raises ValueError.
    """
    text = _ZONE.sub("", text.strip())
    text = _UTC.sub(lambda found: found["offset"] or "Z", text)
    text = _SPACED_OFFSET.sub(lambda found: (found["sign"] or "+") + found["digits"], text)
    if not (_TIME.fullmatch(text) or _DATE.fullmatch(text)):
        raise ValueError("not a time")
    leap = _LEAP_SECOND.search(text) is not None  # datetime has none
    time = datetime.fromisoformat(_LEAP_SECOND.sub("59", text).upper())
    return time + timedelta(seconds=1) if leap else time
