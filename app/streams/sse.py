"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html (9.2)."""

import asyncio
import random
from collections.abc import Hashable
from contextlib import ExitStack
from typing import TypeVar

import structlog
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.auth.requires import Admission
from app.http.asgi import ABORT
from app.http.responses import NO_STORE, EncodedResponse
from app.streams.events import Event, LiveEvents, event_id
from app.streams.poller import Changes, Signal
from app.streams.registry import LiveStreams, Watched
from app.streams.send_timeout import Patience, Stalled
from core.observability.request_middleware import answered

log = structlog.get_logger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = b":\n\n"  # a comment, which clients throw away
# Milliseconds until a client comes again; drawn, so that not all come again at once.
LEAST_RETRY, MOST_RETRY = 1000, 3000
_HEADERS = [
    (b"content-type", MEDIA_TYPE.encode()),
    (b"cache-control", NO_STORE.encode()),
    (b"x-accel-buffering", b"no"),  # or nginx would keep events back until there are many
]


def encode(event: Event) -> bytes:
    """One event, with the blank line that ends it. `data` may have lines; the rest cannot."""
    lines = [] if event.id is None else [b"id: %d" % event.id]
    lines.append(b"event: %b" % event.kind.encode())
    lines += [b"data: " + line for line in event.data.splitlines()]
    return b"\n".join(lines) + b"\n\n"


def last_event_id(request: Request) -> int | None:
    """What the client has seen: by the header, which browsers send when they come again.

    The parameter is for a first request, in which no browser lets a page set that header.
    """
    header = request.headers.get("last-event-id")
    return event_id(request.query_params.get("last_event_id") if header is None else header)


async def open_stream(
    request: Request,
    watched: Watched[K, V],
    admission: Admission,
) -> Response:
    """The stream of what is `watched`; 204 where nothing is left to tell: no browser asks again.

    Raises NotFound, Overloaded, Unavailable.
    """
    with ExitStack() as held:
        held.enter_context(watched.streams.place("sse"))
        changes = held.enter_context(watched.watcher.watching(watched.key))
        events = LiveEvents(changes, admission, last_event_id(request))
        if not await events.open(watched.absent):
            return EncodedResponse(204, b"", [(b"cache-control", NO_STORE.encode())])
        return EventStream(events, changes, watched.streams, held.pop_all())


class EventStream(Response):
    """Sends events until the last one, the end of its time, or until nobody reads them."""

    media_type = MEDIA_TYPE  # for /openapi.json: the `response_class` of its routes

    def __init__(
        self,
        events: LiveEvents,
        changes: Changes[Event],
        streams: LiveStreams,
        held: ExitStack,
    ) -> None:
        """`held` is let go of at the end."""
        self.status_code = 200
        self.background = None
        self.body = b""
        self.raw_headers = _HEADERS
        self._events = events
        self._changes = changes
        self._streams = streams
        self._held = held
        self._patience = Patience()

    def finish(self) -> None:
        self._changes.end()
        self._patience.hurry()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held, self._streams.running(self):
            left = asyncio.create_task(self._until_left(receive))
            try:
                await self._send_all(scope, send)
            except Stalled:
                log.info("stream dropped", reason="the client takes nothing any more")
                abort = scope.get("extensions", {}).get(ABORT)
                if abort is None:
                    raise
                abort()
                await left
            finally:
                left.cancel()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        answered(scope)
        retry = b"retry: %d\n\n" % random.randint(LEAST_RETRY, MOST_RETRY)
        await self._send(send, retry, more=True)
        while (event := await self._events.next()) is not Signal.ENDED:
            piece = encode(event) if isinstance(event, Event) else HEARTBEAT
            await self._send(send, piece, more=True)
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, piece: bytes, *, more: bool) -> None:
        message = {"type": "http.response.body", "body": piece, "more_body": more}
        await self._patience.send(send(message))

    async def _until_left(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass  # a body that nobody asked for
        self._changes.end()
