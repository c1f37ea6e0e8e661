"""Tickets: short-lived credentials for one stream, for clients that cannot send headers.

    gtk_ + id of the key (12, or `-`) + `.` + end (seconds since 1970) + `.` + tag (32 hex digits)

Browsers send no headers with `EventSource` and `WebSocket`, so a ticket is a query parameter. Logs
and browser histories store URLs: a ticket is therefore valid for one path and one minute only. The
tag is a keyed hash (BLAKE2b, RFC 7693), so that no store is needed.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

VALIDITY = timedelta(minutes=1)
_TICKET = re.compile(r"gtk_([0-9a-z]{12}|-)\.([0-9]{1,12})\.([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket and its end."""

    text: str = field(repr=False)
    expires_at: datetime


class TicketSigner:
    """Makes and verifies tickets under one secret, that of the keys."""

    def __init__(self, secret: bytes) -> None:
        root = hashlib.blake2b(secret, person=b"glimpse.ticket").digest()
        self._key = hashlib.blake2b(root, person=b"glimpse.tag").digest()

    def issue(self, key_id: str, path: str, now: datetime) -> Ticket:
        """A ticket for the stream at `path`, as the key `key_id`; empty without keys."""
        end = int((now + VALIDITY).timestamp())
        owner = key_id or "-"
        text = f"gtk_{owner}.{end}.{self._tag(owner, end, path)}"
        return Ticket(text, datetime.fromtimestamp(end, UTC))

    def key_id(self, text: str, path: str, now: datetime) -> str | None:
        """The id of the ticket's key, or None if the ticket is not valid for `path` at `now`."""
        found = _TICKET.fullmatch(text)
        if found is None:
            return None
        owner, end, tag = found[1], int(found[2]), found[3]
        if not hmac.compare_digest(self._tag(owner, end, path), tag):
            return None
        return owner if now.timestamp() < end else None

    def _tag(self, owner: str, end: int, path: str) -> str:
        text = f"{owner}\n{end}\n{path}".encode("utf-8", "replace")
        return hashlib.blake2b(text, key=self._key, digest_size=16).hexdigest()
