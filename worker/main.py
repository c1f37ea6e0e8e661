"""The worker service: its lifespan and its routes."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog
from fastapi import FastAPI

from core.backends import BackendOpener, open_backend, open_usage
from core.backends.bundles import open_bundles
from core.backends.traces import open_tracer_provider
from core.clock import Clock, utc_now
from core.domain.policy import (
    CLASSIFY_PATH,
    DEAD_LETTER_PATH,
    JOBS_PATH,
    NOTIFICATIONS_PATH,
    SCHEDULE_PATH,
)
from core.http.allowed_hosts import AllowedHosts
from core.http.cross_origin import SameOriginOnly
from core.http.health import Check, health_routes
from core.http.openapi import extend_openapi
from core.http.problems import install_problem_handlers
from core.observability.request_middleware import UNTRACED, RequestContext
from core.observability.setup import FASTAPI_TELEMETRY, Observability
from core.settings import Settings
from worker.claims import Claims
from worker.context import WorkerContext
from worker.inference.model_registry import ModelRegistry
from worker.inference.pool import ClassifierPool, Spawn, spawn_process
from worker.inference.trained_models import TrainedModels
from worker.metrics import WorkerMetrics
from worker.notifications.notifier import open_notifier
from worker.priority_semaphore import PrioritySemaphore
from worker.push.auth import push_authenticator
from worker.push.routes import hot_router, router
from worker.training.client import Fit, fit_in_process

log = structlog.get_logger(__name__)

MODEL_SECONDS = 10.0  # how long the start waits for the default model
RELEASE_SECONDS = 2.0  # how long the shutdown waits for the claims of cancelled requests


def create_app(
    settings: Settings,
    clock: Clock = utc_now,
    opener: BackendOpener = open_backend,
    spawn: Spawn = spawn_process,
    fit: Fit = fit_in_process,
) -> FastAPI:
    """The ASGI application. Its lifespan opens the backend and the default model.

    `spawn` starts the classifier processes, and `fit` fits models. `app.state.context` is the
    `WorkerContext` during the lifespan.
    """
    observability = Observability("worker", settings, open_tracer_provider)
    metrics = WorkerMetrics(observability.metrics.registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pool = ClassifierPool(settings, spawn)
        bundles = open_bundles(settings, settings.model_uris)
        models = ModelRegistry(settings.model_uris, bundles, settings.loaded_models, pool.load)
        loading = asyncio.create_task(_load(pool, models))
        try:
            async with (
                _temporary_folder() as heads,
                observability.running() as traces_ready,
                opener(settings, clock) as backend,
                open_usage(settings, clock) as usage,
                open_notifier(settings, backend, metrics, clock) as notifier,
            ):
                authenticate = await asyncio.to_thread(push_authenticator, settings)
                await _wait_for_model(loading)
                await traces_ready
                context = app.state.context = WorkerContext(
                    settings,
                    authenticate,
                    backend,
                    usage,
                    models,
                    notifier,
                    PrioritySemaphore(pool.prefetch),
                    metrics,
                    TrainedModels(backend.blobs, Path(heads)),
                    fit,
                    clock,
                )
                try:
                    yield
                finally:
                    await _stop_fits(context)
                    await _release_claims(context.claims)
        finally:
            loading.cancel()  # if the backend did not open, or the model still loads
            await asyncio.gather(loading, return_exceptions=True)
            await asyncio.to_thread(bundles.close)
            await models.close()
            await pool.close()

    def checks() -> Mapping[str, Check]:
        context: WorkerContext = app.state.context
        return {
            "records": context.backend.records.ping,
            "blobs": context.backend.blobs.ping,
            "queue": context.backend.publisher.ping,
            "model": context.models.check,
        }

    app = FastAPI(
        title="Glimpse worker",
        description="Classifies the images that push messages name. Called by the queue.",
        lifespan=lifespan,
        telemetry=FASTAPI_TELEMETRY,
    )
    # Each delivery opens a span in its message's trace. The scheduler calls every second: each
    # processed job has a span and a log line instead.
    pushed = (CLASSIFY_PATH, JOBS_PATH, NOTIFICATIONS_PATH, DEAD_LETTER_PATH)
    app.add_middleware(SameOriginOnly)
    if settings.worker_hosts:
        app.add_middleware(AllowedHosts, hosts=settings.worker_hosts, setting="PUSH_ENDPOINT")
    app.add_middleware(
        RequestContext,
        observability=observability,
        untraced=(*UNTRACED, *pushed, SCHEDULE_PATH),
        quiet=(SCHEDULE_PATH,),
    )
    extend_openapi(app)
    install_problem_handlers(app)
    # One by one: FastAPI would match an included router twice for each request. The hot routes are
    # before those of FastAPI's documentation, because Starlette tries routes in order.
    app.router.routes[:0] = hot_router.routes
    app.router.routes.extend(router.routes)
    app.include_router(health_routes(checks))
    observability.add_metrics_route(app)
    return app


async def _load(pool: ClassifierPool, models: ModelRegistry) -> None:
    await pool.start()
    await models.open()


async def _wait_for_model(loading: "asyncio.Task[None]") -> None:
    """Wait for the default model, within a limit: without it the worker is alive, not ready."""
    await asyncio.wait((loading,), timeout=MODEL_SECONDS)
    if loading.done():
        await loading
    else:
        log.warning("serving before the model is loaded")


@asynccontextmanager
async def _temporary_folder() -> AsyncIterator[str]:
    folder = await asyncio.to_thread(TemporaryDirectory, prefix="glimpse-heads-")
    try:
        yield folder.name
    finally:
        await asyncio.to_thread(folder.cleanup)


async def _stop_fits(context: WorkerContext) -> None:
    """Stop the fits that still run. Their messages are delivered again."""
    tasks = list(context.fits.values())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _release_claims(claims: Claims) -> None:
    """Wait until every claim is released, while the backend is still open.

    The server has finished its requests by now, or cancelled those that took too long.
    """
    try:
        await asyncio.wait_for(claims.wait_until_released(), RELEASE_SECONDS)
    except TimeoutError:
        log.error("claims left to expire")
