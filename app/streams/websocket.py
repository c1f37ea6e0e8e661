"""The events of one job over a WebSocket (RFC 6455), which can also cancel the job.

Every message is a JSON object. The server sends `{"id", "event", "data"}`: the events of the job's
stream, and `refused` in reply to a message that it cannot handle. A client sends
`{"action": "cancel"}`, or `{"action": "ping"}`, which is answered with `pong`: pages cannot send
the protocol's own pings.

The server closes with 1000 after the last event, with 1012 at shutdown and at the longest duration
of a stream, and with 4000 plus the HTTP status that the same request would have had. The code is
the only reason that a page can read.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.auth.requires import authenticate
from app.http.asgi import ABORT
from app.streams.events import Event, EventSequence, error_event
from app.streams.poller import Signal, Subscription
from app.streams.send_timeout import SendTimedOut, SendTimeout
from core.domain.principals import Principal, Scope
from core.errors import Forbidden, GlimpseError, InvalidRequest
from core.http.cross_origin import is_own_origin
from core.http.query import check_query
from core.http.route_access import mark

log = structlog.get_logger(__name__)

# RFC 6455, 7.4.1, and IANA's registry of close codes.
NORMAL, POLICY_VIOLATION, INTERNAL_ERROR, SERVICE_RESTART = 1000, 1008, 1011, 1012
HTTP_STATUS = 4000  # plus an HTTP status
PONG = b'{"id":null,"event":"pong","data":null}'
MAX_REFUSALS = 10  # refused messages after which a connection is closed


class JobSocket:
    """One accepted connection. `cancel` cancels the job; it may raise a GlimpseError."""

    def __init__(
        self,
        websocket: WebSocket,
        events: EventSequence,
        subscription: Subscription[Event],
        cancel: Callable[[], Awaitable[object]],
    ) -> None:
        self._websocket = websocket
        self._events = events
        self._subscription = subscription
        self._cancel = cancel
        self._timeout = SendTimeout()
        self._sending = asyncio.Lock()
        self._code = NORMAL
        self._refusals = 0

    def finish(self) -> None:
        self._close(SERVICE_RESTART)
        self._timeout.shorten()

    async def run(self) -> None:
        """Send events and handle messages until the last event, or until either side closes."""
        receiving = asyncio.create_task(self._receive_messages())
        try:
            while (event := await self._events.next()) is not Signal.CLOSED:
                if isinstance(event, Event):  # no heartbeats: uvicorn sends pings
                    await self._send(encode_message(event))
                    if event.last:
                        status = event.error_status
                        self._code = NORMAL if status is None else HTTP_STATUS + status
            await self._timeout.send(self._websocket.close(self._code))
        except SendTimedOut:
            log.info("socket dropped", reason="the client does not read")
            self._websocket.scope["extensions"][ABORT]()
        except WebSocketDisconnect:
            log.debug("socket closed by its client")
        finally:
            receiving.cancel()

    def _close(self, code: int) -> None:
        self._code = code
        self._subscription.close()

    async def _receive_messages(self) -> None:
        try:
            while (received := await self._websocket.receive())["type"] == "websocket.receive":
                await self._handle(received.get("text"))
            self._subscription.close()
        except (WebSocketDisconnect, SendTimedOut):
            self._subscription.close()
        except Exception:
            log.exception("message handling failed")
            self._close(INTERNAL_ERROR)

    async def _handle(self, text: str | None) -> None:
        try:
            if action_in(text) == "ping":
                await self._send(PONG)
            else:
                await self._cancel()
        except GlimpseError as error:
            await self._refuse(error)

    async def _refuse(self, error: GlimpseError) -> None:
        self._refusals += 1
        if self._refusals > MAX_REFUSALS:
            self._close(POLICY_VIOLATION)
            return
        await self._send(encode_message(error_event(error), "refused"))

    async def _send(self, message: bytes) -> None:
        async with self._sending:
            await self._timeout.send(self._websocket.send_text(message.decode()))


def encode_message(event: Event, name: str = "") -> bytes:
    """Encode `event` as a message, under its own name or as `name`."""
    id_ = b"null" if event.id is None else b"%d" % event.id
    kind = json.dumps(name or event.kind).encode()
    return b'{"id":%b,"event":%b,"data":%b}' % (id_, kind, event.data)


def action_in(text: str | None) -> str:
    """Return the action that a client's message asks for. Raises InvalidRequest."""
    try:
        message: Any = json.loads(text or "")
    except (ValueError, RecursionError):
        message = None
    action = message.get("action") if isinstance(message, dict) else None
    if action not in ("cancel", "ping"):
        raise InvalidRequest('A message is {"action": "cancel"} or {"action": "ping"}.')
    return str(action)


async def refuse(websocket: WebSocket, error: GlimpseError) -> None:
    """Accept, then close with the reason: pages cannot read why a handshake failed."""
    log.info("socket refused", status=error.status, code=error.code, detail=error.detail)
    await websocket.accept()
    await websocket.send_text(encode_message(error_event(error)).decode())
    await websocket.close(HTTP_STATUS + error.status, error.code)


def check_origin(websocket: WebSocket, allowed: tuple[str, ...]) -> None:
    """Raise Forbidden for a page whose origin is neither this service nor in `allowed`.

    Browsers let pages of any site open a WebSocket to any address. A service without keys would
    serve them.
    """
    origin = websocket.headers.get("origin")
    if origin is None or "*" in allowed or origin in allowed:
        return
    if not is_own_origin(origin, websocket.headers.get("host", "")):
        raise Forbidden("Pages of that origin may not watch jobs here.", extra={"origin": origin})


SocketEndpoint = Callable[[WebSocket, Principal], Awaitable[None]]


def socket_requires(scope: Scope) -> Callable[[SocketEndpoint], Callable[..., Awaitable[None]]]:
    """Require a key with `scope`, as `requires` does, on an endpoint that accepts a WebSocket.

    Errors that the endpoint raises before it accepts close the connection with their status.
    """

    def decorate(endpoint: SocketEndpoint) -> Callable[..., Awaitable[None]]:
        async def authenticated(websocket: WebSocket) -> None:
            try:
                principal = await authenticate(websocket, scope)
                check_query(websocket.scope)
                await endpoint(websocket, principal)
            except GlimpseError as error:
                await refuse(websocket, error)

        authenticated.__name__, authenticated.__doc__ = endpoint.__name__, endpoint.__doc__
        return mark(authenticated, scope)

    return decorate
