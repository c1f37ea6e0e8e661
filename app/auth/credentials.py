"""The key that a request brings: `X-API-Key: glp_…`, or `Authorization: Bearer glp_…` (RFC 6750).

The first wins: behind Cloud Run's own check, `Authorization` belongs to that. Never in an address,
where logs and histories would keep it.
"""

from collections.abc import Iterable

from core.errors import Unauthenticated

_MISSING = "Send your API key: Authorization: Bearer glp_…, or X-API-Key: glp_…."


def key_in(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The key's text, whatever it is. Raises Unauthenticated where there is none."""
    bearer = b""
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            bearer = value[7:].strip()
    if not bearer:
        raise Unauthenticated(_MISSING)
    return bearer
