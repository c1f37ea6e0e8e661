"""uvicorn's HTTP protocol with the limits that it lacks.

It limits connections, the time for the head of a request, and the bytes that a connection may send
without progress. At shutdown it still answers requests that were sent before.
"""

import asyncio
import http
import sys
from dataclasses import dataclass
from typing import Any

import httptools
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from app.http.asgi import ABORT, WEBSOCKET_PREFIX
from app.http.middleware.unread_body import SHORT_LINGER_SECONDS, CloseOnUnreadBody
from app.http.websocket_protocol import SocketProtocol
from core.errors import overloaded
from core.http.problems import problem_response, response_for

HEAD_BYTES = 64 * 1024
DRAIN_SECONDS = 0.3  # how long a stopping server reads what idle connections have sent before
_HEAD_TOO_LARGE = (431, "head_too_large", "The request's line and headers are too large.")
_OVERLOADED = (503, "overloaded", "The service is at capacity. Retry later.")
_FRAMING = (b"content-length", b"transfer-encoding")
_WEBSOCKETS = WEBSOCKET_PREFIX.encode()
_UNLIMITED_PATHS = ("/health",)  # served at capacity, too


@dataclass(frozen=True)
class ConnectionLimits:
    """Serves at most `connections`. Each one sends the head of a request within `head_seconds`.

    A head is the request's line and headers. A connection sends at most `head_bytes` without
    progress, which is the end of a head or a byte of a body. Between two requests it may be idle
    for `idle_seconds`.
    """

    connections: int
    head_seconds: float
    idle_seconds: float
    head_bytes: int = HEAD_BYTES


class HttpProtocol(HttpToolsProtocol):
    """One connection. `http_protocol` creates the class, with `limits`."""

    limits: ConnectionLimits
    idle: dict["HttpProtocol", None]  # connections between two requests, the longest idle first
    keep_alive_header: tuple[bytes, bytes]
    _head_since: float | None = None  # on the loop's clock, while a head is expected
    _idle_bytes = 0  # received since the last progress
    _parsing = b""
    _unparsed = b""  # the bytes after the current request
    _progress = False
    _ignoring = False  # the connection closes: further bytes are not read
    _stopping = False
    _extensions: Any  # of the scope of each request

    # uvicorn narrows asyncio's signature as well: its servers create no other transport.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_since = self.loop.time()
        self._extensions = {ABORT: transport.abort}
        surplus = len(self.connections) - self.limits.connections
        if surplus > 0 and self.idle:
            # A new client is more use than a connection that may never be used again.
            longest = next(iter(self.idle))
            del self.idle[longest]
            longest.transport.close()
        elif surplus > self.limits.connections:
            transport.abort()
        elif surplus > 0:
            self.app = _refusing(self.app)

    def connection_lost(self, exc: Exception | None) -> None:
        self.idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ignoring:
            return
        self.idle.pop(self, None)
        self._progress = False
        self._unparsed = data
        while self._unparsed:
            self._parsing, self._unparsed = self._unparsed, b""
            super().data_received(self._parsing)
        self._parsing = b""  # thousands of idle connections must not keep what they sent last
        if self._head_since is None and not self._answering():
            # Bytes that do not begin a head, or the rest of a body that is not read.
            self._head_since = self.loop.time()
        if self._progress:
            self._idle_bytes = 0
            return
        self._idle_bytes += len(data)
        if self._idle_bytes > self.limits.head_bytes:
            self._refuse(*_HEAD_TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_since = self.loop.time()

    def on_headers_complete(self) -> None:
        self._head_since = None
        self._progress = True
        self.scope["extensions"] = self._extensions
        super().on_headers_complete()
        if self.cycle is None:
            return
        if self._stopping:
            self.cycle.keep_alive = False
        if self.cycle.keep_alive:
            self.cycle.default_headers = [*self.cycle.default_headers, self.keep_alive_header]

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["http_version"] == "1.0":
            app = _delimited_by_close(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _should_upgrade(self) -> bool:
        # Elsewhere the offer of another protocol is ignored (RFC 9110, 7.8).
        # The path of PUBLIC_URL may come before.
        wanted = _WEBSOCKETS in self.url and self.scope["method"] == "GET"
        return wanted and super()._should_upgrade()

    def on_message_complete(self) -> None:
        if not (self.parser.should_upgrade() and self._framing()):
            super().on_message_complete()  # otherwise the body follows

    def _unsupported_upgrade_warning(self) -> None:
        """Continue after a request whose offer of another protocol, such as HTTP/2, is ignored.

        The parser stops at the end of the head, and takes what follows for the other protocol. If
        that is a body, a second parser reads it, and the connection closes after the response.
        """
        upgrade = sys.exc_info()[1]  # uvicorn calls this method while it handles the exception
        assert isinstance(upgrade, httptools.HttpParserUpgrade)
        self._unparsed = self._parsing[upgrade.args[0] :]
        if self.scope["method"] == "CONNECT":
            self.cycle.keep_alive = False
            self._ignoring = True
            self._unparsed = b""
        elif framing := self._framing():
            self.cycle.keep_alive = False
            self.parser = httptools.HttpRequestParser(_BodyReader(self))
            head = b"POST / HTTP/1.1\r\nConnection: close\r\n%b\r\n" % framing
            self._unparsed = head + self._unparsed

    def _framing(self) -> bytes:
        return b"".join(b"%b: %b\r\n" % pair for pair in self.headers if pair[0] in _FRAMING)

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, unless the request is refused."""
        if self._stopping or self.app is not self.config.loaded_app:
            self._refuse(*_OVERLOADED)
            return
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        # The limits of its parser are narrower, and uvicorn does not answer what exceeds them.
        if isinstance(protocol, SocketProtocol) and not protocol.handshake_initiated:
            self._refuse(*_HEAD_TOO_LARGE)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        between_requests = not self._answering() and self._head_since is None
        if between_requests and not self.transport.is_closing():
            self.idle[self] = None

    def on_body(self, body: bytes) -> None:
        self._progress = True
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "malformed_request", msg)

    def check(self, now: float) -> None:
        """Close the connection if a head takes too long. `now` is on the loop's clock."""
        if self._head_since is None or now - self._head_since < self.limits.head_seconds:
            return
        if not self._answering():
            if self._idle_bytes:
                self._refuse(408, "headers_too_slow", "The headers did not arrive in time.")
            else:
                self.transport.close()

    def shutdown(self) -> None:
        """Answer what has been sent, then close."""
        self._stopping = True
        if self._answering():
            self.cycle.keep_alive = False
            if self.cycle.response_started and self.cycle.more_body:
                # The response is complete. The rest of the request is read so that the client
                # can read the response, but not for long now.
                self.loop.call_later(SHORT_LINGER_SECONDS, self.transport.close)
        else:
            # The socket's buffer may contain a request that was sent before the shutdown.
            self.loop.call_later(DRAIN_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self._answering():
            self.transport.close()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Close the connection, with a problem document unless a response has started.

        If a complete request is being answered, that response is sent first and is the last one.
        """
        if self.transport.is_closing():
            return
        if self._answering() and not self.cycle.more_body:
            self.cycle.keep_alive = False
            self._ignoring = True
            return
        if not (self._answering() and self.cycle.response_started):
            self.transport.write(_problem(status, code, detail))
        self.transport.close()


class _BodyReader:
    """Takes from a parser the events of a body, and no others."""

    def __init__(self, protocol: HttpProtocol) -> None:
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete


def http_protocol(limits: ConnectionLimits) -> type[HttpProtocol]:
    """Return the protocol with `limits`, for uvicorn."""
    members = {
        "limits": limits,
        "idle": {},
        "keep_alive_header": (b"keep-alive", b"timeout=%d" % limits.idle_seconds),
    }
    return type("LimitedHttpProtocol", (HttpProtocol,), members)


def _delimited_by_close(app: Any, cycle: RequestResponseCycle) -> Any:
    """Return `app` for a request of HTTP/1.0, which has no chunks (RFC 9112, 7.1).

    A response without a length ends with its connection.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        delimited = False

        async def send_unchunked(message: Message) -> None:
            nonlocal delimited
            if message["type"] == "http.response.start":
                delimited = all(name != b"content-length" for name, _ in message["headers"])
                if delimited:
                    cycle.chunked_encoding = False
            elif delimited:
                # uvicorn counts down to the end of the response.
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_unchunked)

    return answer


def _refusing(app: Any) -> Any:
    """Return the application of a surplus connection."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _UNLIMITED_PATHS:
            await app(scope, receive, send)
            return
        response = response_for(overloaded())
        response.headers["connection"] = "close"
        await response(scope, receive, send)

    return CloseOnUnreadBody(refuse, seconds=SHORT_LINGER_SECONDS)


def _problem(status: int, code: str, detail: str) -> bytes:
    response = problem_response(status, code, http.HTTPStatus(status).phrase, detail)
    head = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
    return STATUS_LINE[status] + head + b"connection: close\r\n\r\n" + bytes(response.body)
