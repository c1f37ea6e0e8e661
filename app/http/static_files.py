"""Files of pages, in memory: compressed, with an entity tag, checked with each visit.

An update of the service is an update of its pages.
"""

import asyncio
import gzip
import hashlib
from collections.abc import Mapping
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response

from app.http.compression import accepts_gzip
from app.http.responses import etag_matches

# Not from the machine's table, which may differ.
_TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".html": "text/html",
}


class StaticFile:
    """A file with this content and name. It is compressed once, when a client first asks for it."""

    def __init__(self, body: bytes, name: str) -> None:
        self.body = body
        self._media_type = _TYPES.get(PurePath(name).suffix, "text/plain")
        self._etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        self._compressed = b""

    async def response(self, request: Request, headers: Mapping[str, str]) -> Response:
        """The file with `headers`, or 304 if the client has it."""
        common = {
            "ETag": f"W/{self._etag}",  # weak: of the content, compressed or not
            "Cache-Control": "no-cache",
            "Vary": "Accept-Encoding",
            **headers,
        }
        if etag_matches(request.headers.get("if-none-match", ""), self._etag):
            return Response(status_code=304, headers=common)
        if not accepts_gzip(request):
            return Response(self.body, media_type=self._media_type, headers=common)
        common["Content-Encoding"] = "gzip"
        self._compressed = self._compressed or await asyncio.to_thread(gzip.compress, self.body)
        return Response(self._compressed, media_type=self._media_type, headers=common)
