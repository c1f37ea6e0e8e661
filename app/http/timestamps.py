"""Times in responses: RFC 3339 with milliseconds, and `date-time` in the schema."""

from datetime import datetime
from typing import Annotated

from pydantic import PlainSerializer, WithJsonSchema

from core.clock import rfc3339

DATE_TIME = {"type": "string", "format": "date-time", "examples": ["2026-11-21T09:30:00.125Z"]}
Timestamp = Annotated[datetime, PlainSerializer(rfc3339), WithJsonSchema(DATE_TIME)]
