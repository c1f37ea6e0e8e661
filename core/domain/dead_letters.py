"""A dead letter: a message that used up its deliveries, kept with the reason of the last failure.

Times are timezone-aware UTC. Letters are listed newest first; `position` is a text that sorts so,
which is why any store can list, filter and go on from a place with one plain index.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from core.domain.records import PUBLIC_TENANT, TENANT
from core.domain.sort_keys import older_than, position

LETTER_ID = re.compile(r"[0-9a-f]{32}")
CODE = re.compile(r"[a-z0-9_]{1,64}")
# Our own messages have no payload. Of others this much is kept: an entity has at most 1 MiB.
PAYLOAD_KEPT = 256 * 1024


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """`attempts` counts deliveries, 0 where the queue did not say.

    `code` and `detail` are the last failure's. `published_at` is when the message was first
    published, `died_at` when it was given up, `resolved_at` when the letter was replayed or found
    to be settled. `payload` holds at most the first `PAYLOAD_KEPT` of `payload_size` bytes.
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
    def position(self) -> str:
        """Unique in its tenant; a younger letter's sorts before an older one's."""
        return position(self.died_at, self.id)


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which letters of a tenant: died at `since` or later, before `before`, of one `code`.

    Those that are resolved only with `resolved`.
    """

    tenant: str
    code: str = ""
    since: datetime | None = None
    before: datetime | None = None
    resolved: bool = False

    def bounds(self, after: str = "") -> tuple[str, str]:
        """Two texts that the positions lie between, both excluded; `after` is one to go on from."""
        low = after
        if self.before is not None:
            low = max(low, older_than(self.before))
        return low, "~" if self.since is None else older_than(self.since)


def letter_id(attributes: Mapping[str, str], payload: bytes, published: str) -> str:
    """The same for every notice of the same message's death, and of no other message.

    `published` tells apart messages of equal content: when the message was published, or its id.
    """
    facts = json.dumps([sorted(attributes.items()), published]).encode()
    return hashlib.sha256(facts + b"\n" + payload).hexdigest()[:32]


def tenant_of(attributes: Mapping[str, str]) -> str:
    """Whose letter it is; one that names nobody is the public tenant's."""
    tenant = attributes.get("tenant", "")
    return tenant if TENANT.fullmatch(tenant) else PUBLIC_TENANT
