"""The worker service: what it opens once, and its routes."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI

from core.backends import BackendOpener, open_backend, open_usage
from core.backends.bundles import open_bundles
from core.backends.traces import open_tracer
from core.clock import Clock, utc_now
from core.domain.policy import (
    CLASSIFY_PATH,
    DEAD_LETTER_PATH,
    JOBS_PATH,
    NOTIFICATIONS_PATH,
    SCHEDULE_PATH,
)
from core.http.health import Check, health_routes
from core.http.problems import install_problem_handlers
from core.observability.request_middleware import UNTRACED, RequestContext
from core.observability.setup import FASTAPI_TELEMETRY, Observation
from core.settings import Settings
from worker.context import Workbench
from worker.inference.model_registry import ModelRegistry
from worker.inference.pool import ClassifierPool, Spawn, spawn_process
from worker.metrics import WorkerMetrics
from worker.notifications.notifier import Notifier, open_notifier
from worker.notifications.routes import notification_routes
from worker.push.auth import push_guard
from worker.push.routes import push_routes

log = structlog.get_logger(__name__)

MODEL_SECONDS = 10.0  # how long a start may wait for the default model
GIVE_UP_SECONDS = 2.0  # how long the claims of cancelled requests may take to be given up


def create_app(
    settings: Settings,
    clock: Clock = utc_now,
    opener: BackendOpener = open_backend,
    spawn: Spawn = spawn_process,
) -> FastAPI:
    """The ASGI application. Its lifespan opens the backend and the default model.

    `spawn` starts the classifier processes.

    `app.state.bench` is the `Workbench` while the lifespan lasts.
    """

    observation = Observation("worker", settings, open_tracer)
    metrics = WorkerMetrics(observation.metrics.registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pool = ClassifierPool(settings, spawn)
        bundles = open_bundles(settings, settings.model_uris)
        models = ModelRegistry(settings.model_uris, bundles, settings.loaded_models, pool.load)
        opening = asyncio.create_task(_open(pool, models))
        try:
            async with (
                observation.running() as observed,
                opener(settings, clock) as backend,
                open_usage(settings, clock) as usage,
            ):
                await _opened(opening)
                await observed
                bench = app.state.bench = Workbench(
                    settings,
                    backend,
                    models,
                    metrics,
                    at_hand=pool.prefetch,
                    usage=usage,
                    clock=clock,
                )
                async with open_notifier(settings, backend, metrics, clock) as app.state.notifier:
                    try:
                        yield
                    finally:
                        await _let_go(bench)
        finally:
            opening.cancel()  # where the backend did not open, or the model is still on its way
            await asyncio.gather(opening, return_exceptions=True)
            await asyncio.to_thread(bundles.close)
            await models.close()
            await pool.close()

    def bench() -> Workbench:
        bench: Workbench = app.state.bench
        return bench

    def notifier() -> Notifier:
        notifier: Notifier = app.state.notifier
        return notifier

    def checks() -> Mapping[str, Check]:
        here = bench()
        return {
            "records": here.backend.records.ping,
            "blobs": here.backend.blobs.ping,
            "queue": here.backend.publisher.ping,
            "model": here.models.check,
        }

    app = FastAPI(
        title="Glimpse worker",
        description="Classifies the images that push messages name. Called by the queue.",
        lifespan=lifespan,
        telemetry=FASTAPI_TELEMETRY,
    )
    # A delivery has a span of its own, in its message's trace. The schedule is asked for every
    # second: what is done about a job has a span and a line of its own.
    pushed = (CLASSIFY_PATH, JOBS_PATH, NOTIFICATIONS_PATH, DEAD_LETTER_PATH)
    app.add_middleware(
        RequestContext,
        observation=observation,
        untraced=(*UNTRACED, *pushed, SCHEDULE_PATH),
        quiet=(SCHEDULE_PATH,),
    )
    install_problem_handlers(app)
    # Taken over one by one: what `include_router` builds is matched twice for each request.
    guard = push_guard(settings)
    app.router.routes.extend(push_routes(bench, observation, guard).routes)
    app.router.routes.extend(notification_routes(bench, notifier, observation, guard).routes)
    app.include_router(health_routes(checks))
    observation.expose(app)
    return app


async def _open(pool: ClassifierPool, models: ModelRegistry) -> None:
    await pool.start()
    await models.open()


async def _opened(opening: "asyncio.Task[None]") -> None:
    """Wait for the default model, though not for ever: a worker without one is alive, not ready."""
    await asyncio.wait((opening,), timeout=MODEL_SECONDS)
    if opening.done():
        await opening
    else:
        log.warning("serving before the model is there")


async def _let_go(bench: Workbench) -> None:
    """Let go of every claim while the backend is still open.

    The server has finished its requests by now, or cancelled those that it could not wait for.
    """
    try:
        await asyncio.wait_for(bench.emptied(), GIVE_UP_SECONDS)
    except TimeoutError:
        log.error("claims left to their leases")
