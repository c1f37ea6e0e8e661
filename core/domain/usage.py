"""The usage of each API key, by day."""

import secrets
from dataclasses import dataclass, field
from datetime import date


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of one key on one day (UTC).

    `requests` were admitted, `refused` exceeded a limit. `images` were uploaded, `bytes` in total,
    including known and refused images.
    """

    tenant: str
    key_id: str
    day: date
    requests: int = 0
    images: int = 0
    bytes: int = 0
    refused: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        if (self.tenant, self.key_id, self.day) != (other.tenant, other.key_id, other.day):
            raise ValueError("only counts of the same key and day can be added")
        return Usage(
            self.tenant,
            self.key_id,
            self.day,
            self.requests + other.requests,
            self.images + other.images,
            self.bytes + other.bytes,
            self.refused + other.refused,
        )


def _new_id() -> str:
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class UsageBatch:
    """Counts that one process adds. A store adds a batch once, however often it gets its id."""

    usage: Usage
    id: str = field(default_factory=_new_id)
