"""Middleware that gives each request a span, a log context, a log line, and metrics."""

import time
from collections.abc import Collection, Iterable, MutableMapping
from typing import Any

import structlog
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.http.problems import RESPONSE_STARTED, answer_unexpected, unanswered
from core.observability.logs import writes_debug_lines
from core.observability.metrics import METRICS_PATH, UNMATCHED
from core.observability.setup import Observability
from core.observability.tracing import (
    NO_PARENT,
    fail,
    make_current,
    parent_from,
    start_span,
    unrecorded_span,
)

log = structlog.get_logger("request")

RawHeaders = tuple[tuple[bytes, bytes], ...]

_POLICY = b"content-security-policy"
_ADDED = "response_headers"
_STARTED = "response_started_at"
# Machines request these every few seconds. Their spans would hide the others.
UNTRACED = ("/health", "/started", "/ready", METRICS_PATH)


class RequestContext:
    """Plain ASGI middleware: a `BaseHTTPMiddleware` would cost a task for each request.

    The current span continues the caller's trace context if it is well-formed. Otherwise it starts
    a new trace. Successful reads and requests for `quiet` paths are logged at debug level, all
    others at info level. Requests for `untraced` paths do not record a span.

    Every response gets `headers` and those of `add_headers`. If it already has a content security
    policy, it keeps that one instead.
    """

    def __init__(
        self,
        app: ASGIApp,
        observability: Observability | None = None,
        untraced: Collection[str] = UNTRACED,
        headers: RawHeaders = (),
        quiet: Collection[str] = (),
    ) -> None:
        self.app = app
        self.headers = headers
        self.without_policy = tuple(pair for pair in headers if pair[0] != _POLICY)
        self._metrics = (observability or Observability()).metrics
        self._untraced = frozenset(untraced)
        self._quiet = frozenset(quiet)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            app = self._websocket if scope["type"] == "websocket" else self.app
            await app(scope, receive, send)
            return
        method = scope["method"]
        state = scope.setdefault("state", {})
        span = self._start(method, scope)
        began, status = time.perf_counter(), 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                state[RESPONSE_STARTED] = True
                headers = message["headers"]
                common = self.headers
                for name, _ in headers:
                    if name == _POLICY:
                        common = self.without_policy
                message["headers"] = [*headers, *common, *state.get(_ADDED, ())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception as error:
            if not unanswered(scope):
                fail(span, type(error).__name__)
                raise
            await answer_unexpected(error, scope, receive, send_with_headers)
        finally:
            ended = time.perf_counter()
            # The duration of a stream depends on its subject, so its time ends at its start.
            self._finish(span, method, scope, status, state.get(_STARTED, ended) - began)
            read = method in ("GET", "HEAD") or scope["path"] in self._quiet
            quiet = read and status < 400
            # structlog's loggers look up the configuration for each line, even if they drop it.
            if not quiet or writes_debug_lines():
                (log.debug if quiet else log.info)(
                    "request",
                    method=method,
                    path=scope["path"],
                    status=status,
                    milliseconds=round(1000 * (ended - began), 1),
                )

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket counts as a GET request with status 101 until it is closed, or refused."""
        span = self._start("GET", scope)
        began, accepted_at = time.perf_counter(), 0.0
        status, code = 500, 1006  # RFC 6455, 7.1.5: closed without a close frame

        async def receive_with_code() -> Message:
            nonlocal code
            message = await receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code", code)
            return message

        async def send_with_status(message: Message) -> None:
            nonlocal status, code, accepted_at
            if message["type"] == "websocket.accept":
                status, accepted_at = 101, time.perf_counter()
            elif message["type"] == "websocket.http.response.start":
                status = message["status"]
            elif message["type"] == "websocket.close":
                code = message.get("code", 1000)
                status = 101 if accepted_at else 403
            await send(message)

        try:
            await self.app(scope, receive_with_code, send_with_status)
        finally:
            ended = time.perf_counter()
            self._finish(span, "GET", scope, status, (accepted_at or ended) - began)
            log.info(
                "websocket",
                path=scope["path"],
                status=status,
                code=code,
                milliseconds=round(1000 * (ended - began), 1),
            )

    def _start(self, method: str, scope: Scope) -> Span:
        """Count the request, and make its new span and an empty log context current."""
        structlog.contextvars.clear_contextvars()
        parent = _parent(scope)
        if scope["path"] in self._untraced:
            span = unrecorded_span(parent)
        else:
            span = start_span(method, SpanKind.SERVER, parent)
        make_current(span)
        self._metrics.in_flight += 1
        return span

    def _finish(self, span: Span, method: str, scope: Scope, status: int, seconds: float) -> None:
        """Count the response, and end the span."""
        self._metrics.in_flight -= 1
        route = scope.get("route")
        template = UNMATCHED if route is None else route.path
        self._metrics.count_request(method, template, status, seconds)
        if span.is_recording():
            _end(span, method, scope, template, status)


def _end(span: Span, method: str, scope: Scope, template: str, status: int) -> None:
    """https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span"""
    if template != UNMATCHED:
        span.update_name(f"{method} {template}")
        span.set_attribute("http.route", template)
    span.set_attributes(
        {
            "http.request.method": method,
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "http.response.status_code": status,
        }
    )
    if status >= 500:
        fail(span, str(status))
    span.end()


def add_headers(scope: MutableMapping[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Add `headers` to the response to this request, with any status."""
    state = scope.setdefault("state", {})
    state[_ADDED] = (*state.get(_ADDED, ()), *headers)


def set_headers(scope: MutableMapping[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> None:
    """As `add_headers`, and replace those with the same names that were added before."""
    state = scope.setdefault("state", {})
    headers = tuple(headers)
    if before := state.get(_ADDED):
        names = {name for name, _ in headers}
        headers = (*(pair for pair in before if pair[0] not in names), *headers)
    state[_ADDED] = headers


def stream_started(scope: MutableMapping[str, Any]) -> None:
    """End the measured duration of this request here, although its response continues."""
    scope.setdefault("state", {})[_STARTED] = time.perf_counter()


def _parent(scope: Scope) -> Context:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    for name, value in headers:
        if name == b"traceparent":
            return parent_from(value.decode("latin-1"))
    return NO_PARENT
