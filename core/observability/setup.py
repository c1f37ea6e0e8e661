"""What watches one service from inside: its metrics, and its tracer while the service runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.telemetry import TelemetryConfig

from core.errors import Unavailable
from core.http.route_access import public
from core.observability.metrics import METRICS_PATH, ServiceMetrics
from core.observability.tracing import NO_TRACER, Tracer
from core.settings import Settings

log = structlog.get_logger(__name__)

# FastAPI has spans and metrics of its own, for whatever global provider there is; ours are enough.
FASTAPI_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
FLUSH_SECONDS = 2.0  # how long a stopping service may still send spans


Endpoint = Callable[..., Awaitable[Response]]
TracerOpener = Callable[[Settings, str], Tracer]  # `core.backends.traces.open_tracer`


class Observation:
    """Made before the application, which counts from its first request on."""

    def __init__(
        self,
        service: str = "",
        settings: Settings | None = None,
        open_tracer: TracerOpener | None = None,
    ) -> None:
        self.metrics = ServiceMetrics()
        self.tracer: Tracer = NO_TRACER
        self._service = service
        self._settings = settings
        self._open_tracer = open_tracer

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Awaitable[None]]:
        """Trace and sample inside. What cannot be set up is logged: the service runs without it.

        Gives what to await before the first request, so that other things open meanwhile.
        """
        assert self._settings is not None
        opening = asyncio.create_task(self._open(self._settings))
        watching = (
            [asyncio.create_task(self.metrics.watch_event_loop())] if self._settings.metrics else []
        )
        try:
            yield opening
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(opening, *watching, return_exceptions=True)
            tracer, self.tracer = self.tracer, NO_TRACER
            if tracer is not NO_TRACER:
                await asyncio.to_thread(tracer.close, FLUSH_SECONDS)

    def expose(
        self,
        app: FastAPI,
        refresh: Callable[[], Awaitable[None]] | None = None,
        guard: Callable[[Endpoint], Endpoint] = public,
    ) -> None:
        """Answer `/metrics`, unless the settings say no. `refresh` runs before each answer.

        `guard` says who may ask.
        """

        async def metrics(request: Request) -> Response:
            if refresh is not None:
                await refresh()
            accept = request.headers.get("accept", "")
            body, media_type = await asyncio.to_thread(self.metrics.exposition, accept)
            return Response(body, headers={"Content-Type": media_type, "Cache-Control": "no-store"})

        if self._settings is not None and self._settings.metrics:
            app.add_api_route(METRICS_PATH, guard(metrics), include_in_schema=False)

    async def _open(self, settings: Settings) -> None:
        if settings.traces == "off" or self._open_tracer is None:
            return
        try:
            # In a thread: it imports OpenTelemetry, and may fetch credentials.
            self.tracer = await asyncio.to_thread(self._open_tracer, settings, self._service)
        except (ImportError, Unavailable, ValueError) as error:  # the last: wrong OTEL_… variables
            reason = error.detail if isinstance(error, Unavailable) else str(error)
            log.error("traces are off", wanted=settings.traces, reason=reason)
