"""Responses that no cache may keep, responses of encoded bytes, and entity tags."""

import json
import re
from collections.abc import Iterable
from typing import Any

from starlette.responses import Response

NO_STORE = "no-store"
_ENTITY_TAG = re.compile(r'(?:W/)?("[^"]*")')

RawHeaders = list[tuple[bytes, bytes]]


class EncodedResponse(Response):
    """A response whose body and headers are already encoded."""

    def __init__(self, status: int, body: bytes, headers: RawHeaders) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = headers


def json_response(
    document: dict[str, Any], status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()
) -> Response:
    """Return `document` as JSON that no cache may keep."""
    body = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
    own = [
        (b"cache-control", NO_STORE.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"content-type", b"application/json"),
    ]
    return EncodedResponse(status, body, [*own, *headers])


def etag_matches(if_none_match: str, etag: str) -> bool:
    """Whether the header lists `etag`, by the weak comparison of RFC 9110, 13.1.2."""
    if if_none_match.strip() == "*":
        return True
    return etag in _ENTITY_TAG.findall(if_none_match)
