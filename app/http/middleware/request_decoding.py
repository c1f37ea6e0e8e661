"""Decodes compressed request bodies (RFC 9110, 8.4.1.3) of JSON documents and forms."""

import zlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import MalformedBody, UnsupportedMediaType
from core.http.problems import response_for

GZIP = ("gzip", "x-gzip")  # the second is the same coding (RFC 9110, 8.4.1.3)
PIECE_BYTES = 64 * 1024  # decoded at a time: a megabyte of gzip can contain a gigabyte
_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
_WINDOW_GZIP = 31  # zlib's notation for gzip


class DecodeRequestBody:
    """Plain ASGI middleware that decodes bodies with `Content-Encoding: gzip`.

    Images and zips are compressed already. A compressed one gets 415 with `Accept-Encoding`
    (RFC 9110, 15.5.16), as any other coding does. The limits of the routes apply to the decoded
    bytes. Reading a damaged body raises MalformedBody.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _WITHOUT_BODY:
            await self.app(scope, receive, send)
            return
        codings = [value for name, value in scope["headers"] if name == b"content-encoding"]
        if not codings:
            await self.app(scope, receive, send)
            return
        named = [each.strip().lower() for each in b",".join(codings).decode("latin-1").split(",")]
        applied = [each for each in named if each not in ("", "identity")]
        decodes = _decodes(scope)
        if applied and not (decodes and len(applied) == 1 and applied[0] in GZIP):
            await _refusal(decodes=decodes)(scope, receive, send)
            return
        kept = [pair for pair in scope["headers"] if pair[0] != b"content-encoding"]
        if applied:
            # The length is that of the compressed body.
            kept = [pair for pair in kept if pair[0] != b"content-length"]
            receive = _GzipReader(receive).receive
        await self.app({**scope, "headers": kept}, receive, send)


class _GzipReader:
    """Decodes the members of a gzip file (RFC 1952), one after the other."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._decoder = zlib.decompressobj(_WINDOW_GZIP)
        self._rest = b""  # compressed bytes that have arrived and are not decoded
        self._more = True

    async def receive(self) -> Message:
        """Return the next decoded piece. Raises MalformedBody."""
        while True:
            if not self._rest and self._more:
                message = await self._receive()
                if message["type"] != "http.request":
                    return message
                self._rest = message.get("body", b"")
                self._more = message.get("more_body", False)
            piece = self._decoded()
            if not (self._rest or self._more):
                if not self._decoder.eof:
                    raise MalformedBody("The gzip body ends early.")
                return {"type": "http.request", "body": piece, "more_body": False}
            if piece:
                return {"type": "http.request", "body": piece, "more_body": True}

    def _decoded(self) -> bytes:
        if self._decoder.eof and self._rest:
            self._decoder = zlib.decompressobj(_WINDOW_GZIP)
        try:
            piece = self._decoder.decompress(self._rest, PIECE_BYTES)
        except zlib.error:
            raise MalformedBody("The body is not gzip, although its header says so.") from None
        self._rest = self._decoder.unconsumed_tail or self._decoder.unused_data
        return piece


def _decodes(scope: Scope) -> bool:
    """Whether the content type is one whose bodies are decoded."""
    for name, value in scope["headers"]:
        if name == b"content-type":
            kind = value.decode("latin-1").partition(";")[0].strip().lower()
            return kind == "application/json" or kind.endswith("+json") or kind in _FORMS
    return False


def _refusal(*, decodes: bool) -> ASGIApp:
    accepted = GZIP[0] if decodes else "identity"
    detail = "Send it with the Content-Encoding gzip, or without one."
    if not decodes:
        detail = "Send it without a Content-Encoding. Only JSON and forms may have one."
    error = UnsupportedMediaType(
        f"The service does not decode this body. {detail}", extra={"accepted": [accepted]}
    )
    response = response_for(error)
    response.headers["accept-encoding"] = accepted
    return response
