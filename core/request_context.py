"""Middleware around every request: trace context, log context, one log line."""

import re
import time
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.telemetry import new_traceparent

log = structlog.get_logger("request")

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class RequestContext:
    """Plain ASGI middleware (a `BaseHTTPMiddleware` would cost a task for each request).

    Sets `scope["state"]["traceparent"]`: the caller's if well-formed, else a new one. Reads that
    succeed are logged at debug, everything else at info.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        traceparent = _traceparent(scope)
        scope.setdefault("state", {})["traceparent"] = traceparent
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(trace=traceparent[3:35])
        began, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
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
