"""Reads the API key of a request: `X-API-Key: glp_…`, or `Authorization: Bearer glp_…` (RFC 6750).

`X-API-Key` takes precedence, because Cloud Run's IAM check uses `Authorization`. Keys in URLs are
not accepted: logs and browser histories store URLs. Tickets are (`core.domain.tickets`).
"""

from collections.abc import Iterable
from urllib.parse import parse_qs

from core.errors import Unauthenticated

_MISSING = "Send your API key: Authorization: Bearer glp_…, or X-API-Key: glp_…."


def ticket_in(query: bytes) -> str:
    """Return the ticket in a query string, unverified, or an empty text."""
    if b"ticket=" not in query:
        return ""
    return parse_qs(query.decode("latin-1")).get("ticket", [""])[0]


def key_in(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the key's text, unverified. Raises Unauthenticated if the headers contain none."""
    bearer = b""
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            bearer = value[7:].strip()
    if not bearer:
        raise Unauthenticated(_MISSING)
    return bearer
