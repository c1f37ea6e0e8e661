"""Middleware around every request: its span, its log context, one log line, its metrics."""

import time
from collections.abc import Collection, Iterable, MutableMapping
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.http.problems import BEGUN, answer_unexpected, unanswered
from core.observability.metrics import METRICS_PATH, UNMATCHED
from core.observability.setup import Observation
from core.observability.tracing import Kind, Span, make_current, new_traceparent, parsed_traceparent

log = structlog.get_logger("request")

RawHeaders = tuple[tuple[bytes, bytes], ...]

_POLICY = b"content-security-policy"
_ADDED = "response_headers"
_ANSWERED = "answered_at"
# Asked for by machines, every few seconds: traces of them would hide the others.
UNTRACED = ("/health", "/ready", METRICS_PATH)


class RequestContext:
    """Plain ASGI middleware (a `BaseHTTPMiddleware` would cost a task for each request).

    The current span continues the caller's trace context if that is well-formed, and begins a trace
    otherwise. Reads that succeed are logged at debug, and so are requests for `quiet` paths,
    everything else at info. Requests for `untraced` paths record no span of their own.

    Every answer carries `headers`, and what `add_headers` added. A policy for its content that the
    answer brings itself stays the only one.
    """

    def __init__(
        self,
        app: ASGIApp,
        observation: Observation | None = None,
        untraced: Collection[str] = UNTRACED,
        headers: RawHeaders = (),
        quiet: Collection[str] = (),
    ) -> None:
        self.app = app
        self.headers = headers
        self.without_policy = tuple(pair for pair in headers if pair[0] != _POLICY)
        self._observation = observation or Observation()
        self._metrics = self._observation.metrics
        self._untraced = frozenset(untraced)
        self._quiet = frozenset(quiet)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            follow = self._follow_socket if scope["type"] == "websocket" else self.app
            await follow(scope, receive, send)
            return
        method, metrics = scope["method"], self._metrics
        state = scope.setdefault("state", {})
        structlog.contextvars.clear_contextvars()
        span = self._begin(method, scope)
        make_current(span)
        metrics.in_flight += 1
        began, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                state[BEGUN] = True
                own = message["headers"]
                ours = self.headers
                for name, _ in own:
                    if name == _POLICY:
                        ours = self.without_policy
                message["headers"] = [*own, *ours, *state.get(_ADDED, ())]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as error:
            if not unanswered(scope):
                span.fail(type(error).__name__)
                raise
            await answer_unexpected(error, scope, receive, watch)
        finally:
            ended = time.perf_counter()
            # What is streamed is answered when it begins: its length says nothing about us.
            seconds = state.get(_ANSWERED, ended) - began
            metrics.in_flight -= 1
            route = scope.get("route")
            template = UNMATCHED if route is None else route.path
            metrics.answered(method, template, status, seconds)
            if span.recording:
                _end(span, method, scope, template, status)
            read = method in ("GET", "HEAD") or scope["path"] in self._quiet
            (log.debug if read and status < 400 else log.info)(
                "request",
                method=method,
                path=scope["path"],
                status=status,
                milliseconds=round(1000 * (ended - began), 1),
            )

    async def _follow_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket is a GET that is answered 101, or refused, and goes on until it is closed."""
        metrics = self._metrics
        structlog.contextvars.clear_contextvars()
        span = self._begin("GET", scope)
        make_current(span)
        metrics.in_flight += 1
        began, answered_at = time.perf_counter(), 0.0
        status, code = 500, 1006  # RFC 6455, 7.1.5: nobody has closed it in due form

        async def watch_receive() -> Message:
            nonlocal code
            message = await receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code", code)
            return message

        async def watch_send(message: Message) -> None:
            nonlocal status, code, answered_at
            if message["type"] == "websocket.accept":
                status, answered_at = 101, time.perf_counter()
            elif message["type"] == "websocket.http.response.start":
                status = message["status"]
            elif message["type"] == "websocket.close":
                code = message.get("code", 1000)
                status = 101 if answered_at else 403
            await send(message)

        try:
            await self.app(scope, watch_receive, watch_send)
        finally:
            ended = time.perf_counter()
            metrics.in_flight -= 1
            route = scope.get("route")
            template = UNMATCHED if route is None else route.path
            metrics.answered("GET", template, status, (answered_at or ended) - began)
            if span.recording:
                _end(span, "GET", scope, template, status)
            log.info(
                "websocket",
                path=scope["path"],
                status=status,
                code=code,
                milliseconds=round(1000 * (ended - began), 1),
            )

    def _begin(self, method: str, scope: Scope) -> Span:
        traceparent = _traceparent(scope)
        if scope["path"] in self._untraced:
            return Span(traceparent or new_traceparent())
        return self._observation.tracer.begin(method, Kind.SERVER, traceparent)


def _end(span: Span, method: str, scope: Scope, template: str, status: int) -> None:
    """https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span"""
    if template != UNMATCHED:
        span.rename(f"{method} {template}")
        span.set({"http.route": template})
    span.set(
        {
            "http.request.method": method,
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "http.response.status_code": status,
        }
    )
    if status >= 500:
        span.fail(str(status))
    span.end()


def add_headers(scope: MutableMapping[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Let the answer to this request carry `headers`, whatever answer it will be."""
    state = scope.setdefault("state", {})
    state[_ADDED] = (*state.get(_ADDED, ()), *headers)


def answered(scope: MutableMapping[str, Any]) -> None:
    """Let the time to answer this request end here, though the answer goes on."""
    scope.setdefault("state", {})[_ANSWERED] = time.perf_counter()


def _traceparent(scope: Scope) -> str:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    for name, value in headers:
        if name == b"traceparent":
            return parsed_traceparent(value.decode("latin-1"))
    return ""
