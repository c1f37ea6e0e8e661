"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html, 9.2)."""

import asyncio
import random
from collections.abc import Hashable
from contextlib import ExitStack
from typing import Annotated, TypeVar

import structlog
from fastapi import Depends, Header, Query
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.auth.requires import KeyRecheck
from app.http.asgi import ABORT
from app.http.responses import NO_STORE, EncodedResponse
from app.streams.events import Event, EventSequence, event_id
from app.streams.poller import Signal, Subscription
from app.streams.registry import StreamRegistry, StreamSource
from app.streams.send_timeout import SendTimedOut, SendTimeout
from core.observability.request_middleware import stream_started

log = structlog.get_logger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = b":\n\n"  # a comment, which clients ignore
# Milliseconds until a client reconnects; random, so that clients do not reconnect all at once.
MIN_RETRY, MAX_RETRY = 1000, 3000
_HEADERS = [
    (b"content-type", MEDIA_TYPE.encode()),
    (b"cache-control", NO_STORE.encode()),
    (b"x-accel-buffering", b"no"),  # tells nginx not to buffer events
]


def encode(event: Event, retry: int | None = None) -> bytes:
    """Encode one event. `data` may contain line breaks; the other fields cannot.

    `retry` is the time in milliseconds after which a client reconnects.
    """
    lines = [] if retry is None else [b"retry: %d" % retry]
    if event.id is not None:
        lines.append(b"id: %d" % event.id)
    lines.append(b"event: %b" % event.kind.encode())
    lines += [b"data: " + line for line in event.data.splitlines()]
    return b"\n".join(lines) + b"\n\n"


async def last_event_id(
    header: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            description="The id of the last event that the client has. Earlier events are not "
            "repeated. Browsers send this header when they reconnect.",
        ),
    ] = None,
    query: Annotated[
        str | None,
        Query(
            alias="last_event_id",
            description="Same as the header, for a first request that cannot set headers.",
        ),
    ] = None,
    ticket: Annotated[  # the authenticator reads it
        str, Query(description="A ticket of `POST /api/v1/tickets`, instead of a key")
    ] = "",
) -> int | None:
    """Return the id of the last event that the client has seen."""
    return event_id(query if header is None else header)


LastEventId = Annotated[int | None, Depends(last_event_id)]


async def open_stream(
    source: StreamSource[K, V], recheck: KeyRecheck, after: int | None
) -> Response:
    """Return the stream of the events behind the event `after`.

    It is 204 if the client has the last event: browsers then stop reconnecting.

    Raises NotFound, RateLimited, Overloaded and Unavailable.
    """
    with ExitStack() as stack:
        stack.enter_context(source.streams.reserve("sse", recheck.key_id))
        subscription = stack.enter_context(source.poller.subscribe(source.key))
        events = EventSequence(subscription, recheck, after)
        if not await events.open(source.absent):
            return EncodedResponse(204, b"", [(b"cache-control", NO_STORE.encode())])
        return EventStream(events, subscription, source.streams, stack.pop_all())


class EventStream(Response):
    """Sends events until the last one, the longest duration of a stream, or a send timeout."""

    media_type = MEDIA_TYPE  # for /openapi.json: the `response_class` of the streams' routes

    def __init__(
        self,
        events: EventSequence,
        subscription: Subscription[Event],
        streams: StreamRegistry,
        resources: ExitStack,
    ) -> None:
        """`resources` are closed at the end of the stream."""
        self.status_code = 200
        self.background = None
        self.body = b""
        self.raw_headers = _HEADERS
        self._events = events
        self._subscription = subscription
        self._streams = streams
        self._resources = resources
        self._timeout = SendTimeout()

    def finish(self) -> None:
        self._subscription.close()
        self._timeout.shorten()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._resources, self._streams.track(self):
            disconnected = asyncio.create_task(self._until_disconnected(receive))
            try:
                await self._send_all(scope, send)
            except SendTimedOut:
                log.info("stream dropped", reason="the client does not read")
                abort = scope.get("extensions", {}).get(ABORT)
                if abort is None:
                    raise
                abort()
                await disconnected
            finally:
                disconnected.cancel()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        stream_started(scope)
        # In the first event: some clients report a block of a `retry` alone as an empty event.
        retry: int | None = random.randint(MIN_RETRY, MAX_RETRY)
        while (event := await self._events.next()) is not Signal.CLOSED:
            if isinstance(event, Event):
                await self._send(send, encode(event, retry), more=True)
                retry = None
            else:
                await self._send(send, HEARTBEAT, more=True)
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, chunk: bytes, *, more: bool) -> None:
        message = {"type": "http.response.body", "body": chunk, "more_body": more}
        await self._timeout.send(send(message))

    async def _until_disconnected(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass  # a request body, which is ignored
        self._subscription.close()
