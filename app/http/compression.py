"""Compresses responses of JSON, lines of JSON and CSV with gzip for clients that accept it.

Only routes that are not hot use it: a single result fits into one packet as it is.
"""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterable, AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.http.negotiation import quality_of

MIN_BYTES = 1400  # fit into one packet uncompressed
LEVEL = 5
THREAD_BYTES = 32 * 1024  # compressing this much would block the event loop for milliseconds
_KINDS = ("application/json", "application/x-ndjson", "text/csv", "application/problem+json")


def accepts_gzip(request: Request) -> bool:
    """Whether `Accept-Encoding` allows gzip (RFC 9110, 12.5.3)."""
    header = ", ".join(request.headers.getlist("accept-encoding"))
    return quality_of(header, "gzip", "*") > 0


async def compressed(request: Request, response: Response) -> Response:
    """Return `response`, compressed if that helps and the client accepts it."""
    kind = response.headers.get("content-type", "").partition(";")[0]
    if kind not in _KINDS or "content-encoding" in response.headers:
        return response
    if isinstance(response, StreamingResponse):
        response.headers.add_vary_header("Accept-Encoding")
        if accepts_gzip(request):
            response.headers["Content-Encoding"] = "gzip"
            response.body_iterator = _compressed_pieces(response.body_iterator)
        return response
    body = bytes(response.body)
    if len(body) < MIN_BYTES or "etag" in response.headers:
        return response
    response.headers.add_vary_header("Accept-Encoding")
    if accepts_gzip(request):
        response.body = (
            await asyncio.to_thread(gzip.compress, body, LEVEL)
            if len(body) >= THREAD_BYTES
            else gzip.compress(body, LEVEL)
        )
        response.headers["Content-Encoding"] = "gzip"
        response.headers["Content-Length"] = str(len(response.body))
    return response


async def _compressed_pieces(
    pieces: AsyncIterable[str | bytes | memoryview],
) -> AsyncIterator[bytes]:
    """Compress pieces as they come: each is flushed, so that a client can process it."""
    encoder = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)
    async for piece in pieces:
        data = piece.encode() if isinstance(piece, str) else piece
        yield await asyncio.to_thread(_flushed, encoder, data)
    yield encoder.flush()


def _flushed(encoder: "zlib._Compress", data: bytes | memoryview) -> bytes:
    return encoder.compress(data) + encoder.flush(zlib.Z_SYNC_FLUSH)
