"""Middleware around every request: trace context, log context, one log line."""

import re
import time
from collections.abc import Iterable, MutableMapping
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.telemetry import new_traceparent

log = structlog.get_logger("request")

RawHeaders = tuple[tuple[bytes, bytes], ...]

_POLICY = b"content-security-policy"
_ADDED = "response_headers"
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class RequestContext:
    """Plain ASGI middleware (a `BaseHTTPMiddleware` would cost a task for each request).

    Sets `scope["state"]["traceparent"]`: the caller's if well-formed, else a new one. Reads that
    succeed are logged at debug, everything else at info.

    Every answer carries `headers`, and what `add_headers` added. A policy for its content that the
    answer brings itself stays the only one.
    """

    def __init__(self, app: ASGIApp, headers: RawHeaders = ()) -> None:
        self.app = app
        self.headers = headers
        self.without_policy = tuple(pair for pair in headers if pair[0] != _POLICY)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        traceparent = _traceparent(scope)
        state = scope.setdefault("state", {})
        state["traceparent"] = traceparent
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(trace=traceparent[3:35])
        began, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = message["headers"]
                ours = self.headers
                for name, _ in own:
                    if name == _POLICY:
                        ours = self.without_policy
                message["headers"] = [*own, *ours, *state.get(_ADDED, ())]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            read = scope["method"] in ("GET", "HEAD") and status < 400
            milliseconds = round(1000 * (time.perf_counter() - began), 1)
            (log.debug if read else log.info)(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                milliseconds=milliseconds,
            )


def add_headers(scope: MutableMapping[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Let the answer to this request carry `headers`, whatever answer it will be."""
    state = scope.setdefault("state", {})
    state[_ADDED] = (*state.get(_ADDED, ()), *headers)


def _traceparent(scope: Scope) -> str:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    for name, value in headers:
        if name == b"traceparent":
            text = value.decode("latin-1")
            if _TRACEPARENT.fullmatch(text):
                return text
    return new_traceparent()


def traceparent_of(state: Any) -> str:
    """The trace context that the middleware left on `request.state`."""
    return str(getattr(state, "traceparent", ""))
