"""The API as an application: routes, middleware, and what is opened and closed around them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import structlog
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app import (
    VERSION,
    dead_letter_routes,
    image_routes,
    job_routes,
    job_stream_routes,
    key_routes,
    local_blobs,
    lookup_routes,
    seed_routes,
    usage_routes,
    webhook_routes,
)
from app.allowed_hosts import AllowedHosts
from app.audit import dropped_counter, open_audit
from app.docs_page import docs_routes
from app.documentation import DESCRIPTION, TAGS, install_documentation
from app.gate import open_gate
from app.guard import requires
from app.image_service import ImageService, service_in
from app.job_events import job_event
from app.job_service import JobService
from app.metrics import ApiMetrics
from app.model import read_model
from app.security_headers import security_headers
from app.stopping import AnswerWhenCancelled
from app.unread_body import CloseOnUnreadBody
from app.webhook_service import Webhooks
from core.backends import BackendOpener, open_backend
from core.clock import Clock, utc_now
from core.exposure import check_api
from core.health import Check, health_routes
from core.identity import Scope
from core.model_bundle import Bundle
from core.observation import FASTAPI_TELEMETRY, Observation
from core.problems import install_problem_handlers
from core.public_http import PublicResolver
from core.request_context import RequestContext
from core.route_access import check_every_route
from core.settings import Settings

log = structlog.get_logger(__name__)

_CORS_REQUEST_HEADERS = (
    *(
        "Authorization",
        "X-API-Key",
        "Content-Type",
        "If-None-Match",
        "Last-Event-ID",
        "Prefer",
        "Traceparent",
    ),
    *("Cancel-After", "Idempotency-Key"),
)
_CORS_ANSWER_HEADERS = (
    *("ETag", "Location", "Preference-Applied", "RateLimit", "RateLimit-Policy", "Retry-After"),
)


def create_app(
    settings: Settings,
    clock: Clock = utc_now,
    opener: BackendOpener = open_backend,
    bundle: Bundle | None = None,
) -> FastAPI:
    """The API under `settings`. Its lifespan opens the backend.

    `bundle` is the model; without it the lifespan reads its manifest. Raises Exposed where anyone
    could reach the API and nobody would be asked for a key.
    """
    check_api(settings)
    observation = Observation("api", settings)
    metrics = ApiMetrics(observation.metrics.registry)
    dropped = dropped_counter(observation.metrics.registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        model = bundle if bundle is not None else await asyncio.to_thread(read_model, settings)
        async with (
            observation.running() as observed,
            opener(settings, clock) as backend,
            open_gate(settings, clock) as app.state.gate,
        ):
            service = ImageService(settings, backend, model, metrics, clock)
            await observed
            app.state.service = service
            resolver = PublicResolver(allow_private=settings.webhook_allow_private)
            app.state.webhooks = Webhooks(backend, resolver, clock)
            app.state.jobs = JobService(settings, backend, model.identity, metrics, clock)
            app.state.job_watcher = service.streams.watcher(
                "jobs",
                backend.jobs.get_many,
                partial(job_event, public_url=settings.public_url),
            )
            log.info("ready", model=model.identity, backend=settings.backend)
            async with open_audit(settings, model.identity, dropped, clock) as app.state.audit:
                try:
                    yield
                finally:
                    await service.close()
                    await resolver.close()

    def checks() -> dict[str, Check]:
        gate = app.state.gate
        return {**service_in(app).checks(), **({} if gate is None else {"keys": gate.check})}

    async def refresh() -> None:
        await metrics.look_at(service_in(app).backend.publisher)

    app = FastAPI(
        title="Glimpse",
        version=VERSION,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        telemetry=FASTAPI_TELEMETRY,
        docs_url=None,
        openapi_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    # Taken over one by one: what `include_router` builds is matched twice for each request.
    for router in (
        image_routes.router,
        lookup_routes.router,
        seed_routes.router,
        job_routes.router,
        job_stream_routes.router,
        local_blobs.router,
        dead_letter_routes.router,
        key_routes.router,
        usage_routes.router,
        webhook_routes.router,
        health_routes(checks),
        *((docs_routes(app.title),) if settings.docs else ()),
    ):
        app.router.routes.extend(router.routes)
    observation.expose(app, refresh, requires(Scope.ADMIN))
    check_every_route(app.router.routes)
    install_documentation(app, keys_required=settings.keys_required)
    install_problem_handlers(app)
    app.add_middleware(CloseOnUnreadBody)
    app.add_middleware(AnswerWhenCancelled)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST", "PATCH", "DELETE"),
            allow_headers=_CORS_REQUEST_HEADERS,
            expose_headers=_CORS_ANSWER_HEADERS,
        )
    if settings.allowed_hosts:
        app.add_middleware(AllowedHosts, hosts=settings.allowed_hosts)
    app.add_middleware(RequestContext, headers=security_headers(settings), observation=observation)
    return app
