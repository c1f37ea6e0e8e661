"""A dead letter: a message that used up its deliveries, with the reason of the last failure.

Times are timezone-aware UTC. Lists show the newest letter first.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from core.domain.records import PUBLIC_TENANT, TENANT
from core.domain.sort_keys import bounds, sort_key
from core.domain.transitions import transition

LETTER_ID = re.compile(r"[0-9a-f]{32}")
CODE = re.compile(r"[a-z0-9_]{1,64}")
# Glimpse's messages have no payload. Of other payloads this much is kept: a Datastore entity has at
# most 1 MiB.
MAX_PAYLOAD = 256 * 1024


class LetterKey(NamedTuple):
    tenant: str
    id: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """`attempts` counts deliveries; 0 if the queue did not say.

    `code` and `detail` describe the last failure. `published_at` is when the message was first
    published, `died_at` when it used up its deliveries, `resolved_at` when the letter was replayed
    or nothing was left to do for it. `payload` holds at most the first `MAX_PAYLOAD` of
    `payload_size` bytes.
    """

    id: str
    tenant: str
    attributes: Mapping[str, str]
    payload: bytes
    payload_size: int
    attempts: int
    code: str
    detail: str
    published_at: datetime
    died_at: datetime
    resolved_at: datetime | None = None

    @property
    def key(self) -> LetterKey:
        return LetterKey(self.tenant, self.id)

    @property
    def sort_key(self) -> str:
        """Orders the tenant's letters, newest first; unique there."""
        return sort_key(self.died_at, self.id)


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Selects letters of a tenant that died at `since` or later and before `before`, with `code`.

    An empty or missing value selects all. With `resolved`, resolved letters are selected as well.
    """

    tenant: str
    code: str = ""
    since: datetime | None = None
    before: datetime | None = None
    resolved: bool = False

    def bounds(self, after: str = "") -> tuple[str, str]:
        """As `core.domain.sort_keys.bounds`."""
        return bounds(self.since, self.before, after)


@transition(durable=False)
def resolve(letter: DeadLetter, now: datetime) -> DeadLetter | None:
    """Set `resolved_at`. Refused if it is set. A power loss may undo it: a replay repeats it."""
    return None if letter.resolved_at is not None else replace(letter, resolved_at=now)


def letter_id(attributes: Mapping[str, str], payload: bytes, published: str) -> str:
    """The same for every delivery of one dead letter, and different for every other message.

    `published` is when the message was published, or its id: messages may have the same content.
    """
    facts = json.dumps([sorted(attributes.items()), published]).encode()
    return hashlib.sha256(facts + b"\n" + payload).hexdigest()[:32]


def tenant_of(attributes: Mapping[str, str]) -> str:
    """The tenant in the attributes, or the public tenant."""
    tenant = attributes.get("tenant", "")
    return tenant if TENANT.fullmatch(tenant) else PUBLIC_TENANT
