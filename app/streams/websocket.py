"""The events of one job over a WebSocket (RFC 6455), and the job's cancellation by its client.

Every message is a JSON object. Ours: `{"id", "event", "data"}`, the events of the job's stream, and
`refused` in answer to a message that we cannot follow. The client's: `{"action": "cancel"}`, or
`{"action": "ping"}`, which is answered with `pong`: browsers cannot send the protocol's own.

Closed with 1000 after the last event, 1012 where the service stops or the socket's time is up, and
4000 plus the HTTP status where HTTP would have answered with that: pages are told no other reason.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.auth.requires import admitted
from app.http.asgi import ABORT
from app.streams.events import Event, LiveEvents, refusal
from app.streams.poller import Changes, Signal
from app.streams.send_timeout import Patience, Stalled
from core.domain.principals import Principal, Scope
from core.errors import Forbidden, GlimpseError, InvalidRequest
from core.http.route_access import mark

log = structlog.get_logger(__name__)

DONE, UNSUITABLE, FAILED, AGAIN = (
    1000,
    1008,
    1011,
    1012,
)  # RFC 6455, 7.4.1, and IANA's registry of close codes
REFUSED = 4000  # and an HTTP status
PONG = b'{"id":null,"event":"pong","data":null}'
MOST_REFUSALS = 10  # messages that make no sense, in one socket's life


class LiveSocket:
    """One socket, accepted already. `cancel` cancels the job, or raises one of our errors."""

    def __init__(
        self,
        websocket: WebSocket,
        events: LiveEvents,
        changes: Changes[Event],
        cancel: Callable[[], Awaitable[object]],
    ) -> None:
        self._websocket = websocket
        self._events = events
        self._changes = changes
        self._cancel = cancel
        self._patience = Patience()
        self._sending = asyncio.Lock()
        self._code = DONE
        self._refusals = 0

    def finish(self) -> None:
        self._end(AGAIN)
        self._patience.hurry()

    async def run(self) -> None:
        """Tell events and obey, until the last event or until one of us leaves."""
        obeying = asyncio.create_task(self._obey())
        try:
            while (event := await self._events.next()) is not Signal.ENDED:
                if isinstance(event, Event):  # else it is quiet, and uvicorn's pings go on
                    await self._send(message_of(event))
                    if event.last:
                        self._code = DONE if event.refused is None else REFUSED + event.refused
            await self._patience.send(self._websocket.close(self._code))
        except Stalled:
            log.info("socket dropped", reason="the client takes nothing any more")
            self._websocket.scope["extensions"][ABORT]()
        except WebSocketDisconnect:
            log.debug("socket closed by its client")
        finally:
            obeying.cancel()

    def _end(self, code: int) -> None:
        self._code = code
        self._changes.end()

    async def _obey(self) -> None:
        """Read what the client says, until it leaves."""
        try:
            while (received := await self._websocket.receive())["type"] == "websocket.receive":
                await self._follow(received.get("text"))
            self._changes.end()
        except (WebSocketDisconnect, Stalled):
            self._changes.end()
        except Exception:
            log.exception("message not obeyed")
            self._end(FAILED)

    async def _follow(self, text: str | None) -> None:
        try:
            if action_in(text) == "ping":
                await self._send(PONG)
            else:
                await self._cancel()
        except GlimpseError as error:
            await self._refuse(error)

    async def _refuse(self, error: GlimpseError) -> None:
        self._refusals += 1
        if self._refusals > MOST_REFUSALS:
            self._end(UNSUITABLE)
            return
        await self._send(message_of(refusal(error), "refused"))

    async def _send(self, message: bytes) -> None:
        async with self._sending:
            await self._patience.send(self._websocket.send_text(message.decode()))


def message_of(event: Event, name: str = "") -> bytes:
    """`event` as a message; `name` in place of its own."""
    id_ = b"null" if event.id is None else b"%d" % event.id
    kind = encoded_text(name or event.kind)
    return b'{"id":%b,"event":%b,"data":%b}' % (id_, kind, event.data)


def encoded_text(text: str) -> bytes:
    return json.dumps(text).encode()


def action_in(text: str | None) -> str:
    """What a client's message asks for. Raises InvalidRequest."""
    try:
        message: Any = json.loads(text or "")
    except (ValueError, RecursionError):
        message = None
    action = message.get("action") if isinstance(message, dict) else None
    if action not in ("cancel", "ping"):
        raise InvalidRequest('A message is {"action": "cancel"} or {"action": "ping"}.')
    return str(action)


async def refuse(websocket: WebSocket, error: GlimpseError) -> None:
    """Accept and close at once: of a handshake that fails a page hears no reason at all."""
    log.info("socket refused", status=error.status, code=error.code, detail=error.detail)
    await websocket.accept()
    await websocket.send_text(message_of(refusal(error)).decode())
    await websocket.close(REFUSED + error.status, error.code)


def check_origin(websocket: WebSocket, allowed: tuple[str, ...]) -> None:
    """Raise Forbidden for a page of a site that is neither ours nor among `allowed`.

    No cookie makes us believe anyone. But where no keys are asked for, being able to reach us is
    all it takes, and a browser lets the pages of any site open sockets to any address.
    """
    origin = websocket.headers.get("origin")
    if origin is None or "*" in allowed or origin in allowed:
        return
    if origin.partition("://")[2] != websocket.headers.get("host"):
        raise Forbidden("Pages of that origin may not watch jobs here.", extra={"origin": origin})


SocketEndpoint = Callable[[WebSocket, Principal], Awaitable[None]]


def socket_requires(scope: Scope) -> Callable[[SocketEndpoint], Callable[..., Awaitable[None]]]:
    """As `requires`, for the endpoint of a WebSocket that it has yet to accept.

    Closes the socket by what the endpoint raises before it has accepted, too.
    """

    def decorate(endpoint: SocketEndpoint) -> Callable[..., Awaitable[None]]:
        async def guarded(websocket: WebSocket) -> None:
            try:
                await endpoint(websocket, await admitted(websocket, scope))
            except GlimpseError as error:
                await refuse(websocket, error)

        guarded.__name__, guarded.__doc__ = endpoint.__name__, endpoint.__doc__
        return mark(guarded, scope)

    return decorate
