"""The metrics of a service and, while it runs, the recording of its traces."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace

from core.errors import Unavailable
from core.http.route_access import public
from core.observability.metrics import METRICS_PATH, ServiceMetrics
from core.observability.tracing import record_with
from core.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = structlog.get_logger(__name__)

# FastAPI's spans would duplicate those of `core.observability.request_middleware`.
FASTAPI_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
FLUSH_SECONDS = 2.0  # how long a stopping service may send its last spans


Endpoint = Callable[..., Awaitable[Response]]
ProviderOpener = Callable[[Settings, str], "TracerProvider | None"]


class Observability:
    """Metrics and traces of one process. The application creates it before its first request."""

    def __init__(
        self,
        service: str = "",
        settings: Settings | None = None,
        open_provider: ProviderOpener | None = None,
    ) -> None:
        """`open_provider` is `core.backends.traces.open_tracer_provider`, or None for no traces."""
        self.metrics = ServiceMetrics()
        self._service = service
        self._settings = settings
        self._open_provider = open_provider

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Awaitable[None]]:
        """Record traces and sample the event loop's lag for the duration of the context.

        Yields an awaitable: await it before the first request, and open other things meanwhile. If
        traces cannot be set up, the service logs the reason and runs without them.
        """
        assert self._settings is not None
        opening = asyncio.create_task(self._set_up_traces(self._settings))
        sampling = (
            [asyncio.create_task(self.metrics.sample_event_loop_lag())]
            if self._settings.metrics
            else []
        )
        try:
            yield _done(opening)
        finally:
            for task in sampling:
                task.cancel()
            provider, *_ = await asyncio.gather(opening, *sampling, return_exceptions=True)
            if provider is not None and not isinstance(provider, BaseException):
                from core.observability.trace_export import shut_down

                await asyncio.to_thread(shut_down, provider, FLUSH_SECONDS)

    def add_metrics_route(
        self,
        app: FastAPI,
        refresh: Callable[[], Awaitable[None]] | None = None,
        protect: Callable[[Endpoint], Endpoint] = public,
    ) -> None:
        """Serve `/metrics`, unless the settings turn it off. `refresh` runs before each response.

        `protect` wraps the endpoint in its access check.
        """

        async def metrics(request: Request) -> Response:
            if refresh is not None:
                await refresh()
            accept = request.headers.get("accept", "")
            body, media_type = await asyncio.to_thread(self.metrics.exposition, accept)
            return Response(body, headers={"Content-Type": media_type, "Cache-Control": "no-store"})

        if self._settings is not None and self._settings.metrics:
            app.add_api_route(METRICS_PATH, protect(metrics), include_in_schema=False)

    async def _set_up_traces(self, settings: Settings) -> "TracerProvider | None":
        if settings.traces == "off" or self._open_provider is None:
            return None
        try:
            # In a thread: it imports the SDK and may fetch credentials.
            provider = await asyncio.to_thread(self._open_provider, settings, self._service)
        except (ImportError, Unavailable, ValueError) as error:  # ValueError: an OTEL_… variable
            reason = error.detail if isinstance(error, Unavailable) else str(error)
            log.error("traces are off", wanted=settings.traces, reason=reason)
            return None
        if provider is not None:
            trace.set_tracer_provider(provider)  # for the spans of libraries
            record_with(provider)
        return provider


async def _done(task: "asyncio.Task[TracerProvider | None]") -> None:
    await task
