"""uvicorn's HTTP protocol with the limits that it leaves out.

How many connections, how long a request's headers may take to come, how large they may be (chunked
trailers included), and a stop that still answers what has been sent.
"""

import asyncio
import http
import sys
from dataclasses import dataclass
from typing import Any

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.http.asgi import ABORT, WEBSOCKET_PREFIX
from app.http.middleware.unread_body import CloseOnUnreadBody
from app.http.websocket_protocol import SocketProtocol
from core.errors import overloaded
from core.http.problems import problem_response, response_for

HEAD_BYTES = 64 * 1024
# For how long a stopping server reads from idle connections what was on its way to it.
DRAIN_SECONDS = 0.3
_HEAD_TOO_LARGE = (431, "head_too_large", "The request's line and headers are too large.")
_OVERLOADED = (503, "overloaded", "The service is at capacity. Retry later.")
_OFFER = (b"upgrade", b"http2-settings")  # headers, and options of `Connection`
_FREE_PATHS = ("/health",)  # answered however much there is to do


@dataclass(frozen=True)
class ConnectionLimits:
    """At most `connections` are served. Each sends a request's head within `head_seconds`.

    A head is its first line and its headers, of at most `head_bytes`.
    """

    connections: int
    head_seconds: float
    head_bytes: int = HEAD_BYTES


class HttpProtocol(HttpToolsProtocol):
    """One connection. Made by `http_protocol`, which sets `limits`."""

    limits: ConnectionLimits
    _head_since: float | None = None  # on the loop's clock, while a request's headers are awaited
    _idle_bytes = 0  # received without progress: neither a head's end nor a byte of a body
    _incoming = 0  # what is being looked at
    _data = b""  # that itself, for as long
    _progress = False
    _deaf = False  # what comes after a request that could not be read is nobody's
    _stopping = False
    _extensions: Any  # what a request's scope offers beyond the standard

    # Narrower than asyncio's, as uvicorn's own: its servers give no other transport.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_since = self.loop.time()
        self._extensions = {ABORT: transport.abort}
        surplus = len(self.connections) - self.limits.connections
        if surplus > self.limits.connections:
            transport.abort()
        elif surplus > 0:
            self.app = _refusing(self.app)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._progress = False
        self._incoming, self._data = len(data), data
        super().data_received(data)
        self._data = b""  # thousands of idle connections must not hold what they last sent
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
        if self._declined():
            return  # it is read again without its offer, in a moment
        self._head_since = None
        self._progress = True
        self.scope["extensions"] = self._extensions
        app = self.app
        if self._idle_bytes + self._incoming > self.limits.head_bytes and self._head_too_large():
            self.app = _TOO_LARGE
        super().on_headers_complete()
        self.app = app
        if self._stopping and self.cycle is not None:
            self.cycle.keep_alive = False

    def _should_upgrade(self) -> bool:
        # Elsewhere it is an offer that we leave (RFC 9110, 7.8).
        wanted = self.url.startswith(WEBSOCKET_PREFIX.encode()) and self.scope["method"] == "GET"
        return wanted and super()._should_upgrade()

    def _declined(self) -> bool:
        """Whether the request offers another protocol that we leave, as HTTP/2 without TLS."""
        if not self.parser.should_upgrade():
            return False
        self.scope["method"] = self.parser.get_method().decode("ascii")
        return self.scope["method"] != "CONNECT" and not self._should_upgrade()

    def on_message_complete(self) -> None:
        if not self._declined():
            super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Read a declined request again, without its offer.

        The parser takes what follows an offer for the other protocol's, and so leaves the body.
        CONNECT, which is never declined, needs none: what follows it is for a tunnel that we are
        not, so its answer is the last.
        """
        if self.scope["method"] == "CONNECT":
            self.cycle.keep_alive = False
            self._deaf = True
            return
        upgrade = sys.exc_info()[1]  # we are called where it was caught
        assert isinstance(upgrade, httptools.HttpParserUpgrade)
        rest = self._data[upgrade.args[0] :]
        head = self._head_without_offer()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.data_received(head + rest)

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            kept = value
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                kept = b", ".join(each for each in options if each.lower() not in _OFFER)
            if name not in _OFFER and kept:
                lines.append(b"%b: %b" % (name, kept))
        return b"\r\n".join((*lines, b"", b""))

    def handle_websocket_upgrade(self) -> None:
        """Give the connection away, unless it is one that would be refused as HTTP, too."""
        if self._head_too_large():
            self._refuse(*_HEAD_TOO_LARGE)
        elif self._stopping or self.app is not self.config.loaded_app:
            self._refuse(*_OVERLOADED)
        else:
            super().handle_websocket_upgrade()
            protocol = self.transport.get_protocol()
            # Its parser is narrower than ours, and uvicorn does not tell the client.
            if isinstance(protocol, SocketProtocol) and not protocol.handshake_initiated:
                self._refuse(*_HEAD_TOO_LARGE)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answering():
            self._head_since = self.loop.time()  # uvicorn's own patience ends with the next byte

    def on_body(self, body: bytes) -> None:
        self._progress = True
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "malformed_request", msg)

    def check(self, now: float) -> None:
        """Close the connection if its headers take too long. `now` is on the loop's clock."""
        if self._head_since is None or now - self._head_since < self.limits.head_seconds:
            return
        if not self._answering():
            if self._idle_bytes:
                self._refuse(408, "headers_too_slow", "The headers did not come in time.")
            else:
                self.transport.close()  # nothing was asked

    def shutdown(self) -> None:
        """Serve what has been sent, and nothing after it."""
        self._stopping = True
        if self._answering():
            self.cycle.keep_alive = False
        else:
            # What lies in the socket's buffer was sent to a server that ran: it is read first.
            self.loop.call_later(DRAIN_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self._answering():
            self.transport.close()

    def _head_too_large(self) -> bool:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        return size > self.limits.head_bytes

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Close, with a problem document unless an answer has begun.

        Where a whole request is being answered, that answer comes first, and is the last.
        """
        if self.transport.is_closing():
            return
        if self._answering() and not self.cycle.more_body:
            self.cycle.keep_alive = False
            self._deaf = True
            return
        if not (self._answering() and self.cycle.response_started):
            self.transport.write(_problem(status, code, detail))
        self.transport.close()


def http_protocol(limits: ConnectionLimits) -> type[HttpProtocol]:
    """The protocol under `limits`, as uvicorn takes it."""
    return type("LimitedHttpProtocol", (HttpProtocol,), {"limits": limits})


async def _refuse_head(scope: Scope, receive: Receive, send: Send) -> None:
    response = problem_response(*_problem_of(*_HEAD_TOO_LARGE), headers={"Connection": "close"})
    await response(scope, receive, send)


_TOO_LARGE: Any = CloseOnUnreadBody(_refuse_head)


def _refusing(app: Any) -> Any:
    """What a connection meets that is one too many."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _FREE_PATHS:
            await app(scope, receive, send)
            return
        response = response_for(overloaded())
        response.headers["connection"] = "close"
        await response(scope, receive, send)

    return CloseOnUnreadBody(refuse)


def _problem_of(status: int, code: str, detail: str) -> tuple[int, str, str, str]:
    return status, code, http.HTTPStatus(status).phrase, detail


def _problem(status: int, code: str, detail: str) -> bytes:
    response = problem_response(*_problem_of(status, code, detail))
    head = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
    return STATUS_LINE[status] + head + b"connection: close\r\n\r\n" + bytes(response.body)
