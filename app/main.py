"""The API as an application: its routes, its middleware, and the services that they use."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

import structlog
from fastapi import FastAPI
from prometheus_client import Counter
from starlette.middleware.cors import CORSMiddleware

from app import VERSION
from app.audit_log import dropped_counter, open_audit
from app.auth.authenticator import open_authenticator
from app.auth.requires import requires
from app.batches.reader import BatchReader
from app.dead_letters import routes as dead_letter_routes
from app.http.docs_page import docs_routes
from app.http.middleware.head import HeadAsGet
from app.http.middleware.path_prefix import PathPrefix
from app.http.middleware.request_decoding import DecodeRequestBody
from app.http.middleware.security_headers import security_headers
from app.http.middleware.shutdown import RespondWhenCancelled
from app.http.middleware.unread_body import CloseOnUnreadBody
from app.http.unknown_path import install_unknown_path
from app.images import (
    list_routes,
    local_content_routes,
    lookup_routes,
    thumbnail_routes,
    what_routes,
)
from app.images import routes as image_routes
from app.images.events import image_event, look_up_views
from app.images.responses import success_headers
from app.images.service import ImageService
from app.images.thumbnails import Thumbnails
from app.jobs import routes as job_routes
from app.jobs import stream_routes as job_stream_routes
from app.jobs.creation import JobCreator
from app.jobs.events import job_event
from app.jobs.service import JobService
from app.jobs.training import TrainingService
from app.keys import routes as key_routes
from app.keys import usage_routes
from app.metrics import ApiMetrics
from app.models import routes as model_routes
from app.models.catalogue import BundleModels, ModelCatalogue, ModelRef
from app.models.default_bundle import check_model, read_model
from app.models.trained import TrainedModels
from app.openapi import DESCRIPTION, TAGS, install_openapi
from app.page.routes import page_routes
from app.services import Services
from app.streams import ticket_routes
from app.streams.registry import STREAM_SECONDS, StreamRegistry
from app.uploads.image_source import open_image_fetcher
from app.uploads.limiter import UploadLimiter, upload_limits
from app.webhooks import routes as webhook_routes
from app.webhooks.service import Webhooks
from core.backends import Backend, BackendOpener, open_backend
from core.backends.bundles import open_bundles
from core.backends.traces import open_tracer_provider
from core.bundles.python_bundle import AnyBundle
from core.clock import Clock, utc_now
from core.domain.principals import Scope
from core.domain.records import PUBLIC_TENANT
from core.http.allowed_hosts import AllowedHosts
from core.http.cross_origin import SameOriginOnly
from core.http.health import Check, health_routes
from core.http.problems import install_problem_handlers
from core.http.route_access import check_every_route
from core.http.startup_security import check_api
from core.observability.request_middleware import RequestContext
from core.observability.setup import FASTAPI_TELEMETRY, Observability
from core.outbound.http_client import PublicResolver
from core.settings import Settings

log = structlog.get_logger(__name__)

_CORS_REQUEST_HEADERS = (
    *("Authorization", "Cancel-After", "Content-Type", "Idempotency-Key", "If-None-Match"),
    *("If-Range", "Last-Event-ID", "Prefer", "Range", "Traceparent", "X-API-Key"),
)
_CORS_RESPONSE_HEADERS = (
    *("Accept-Encoding", "Content-Disposition", "ETag", "Location", "Preference-Applied"),
    *("RateLimit", "RateLimit-Policy", "Retry-After"),
)


def create_app(
    settings: Settings,
    clock: Clock = utc_now,
    opener: BackendOpener = open_backend,
    bundle: AnyBundle | None = None,
) -> FastAPI:
    """The API with `settings`. Its lifespan opens the services.

    `bundle` is the model. By default, the lifespan reads the manifest of `MODEL_URI`. Raises
    InsecureSettings if other machines could reach the API without a key.
    """
    check_api(settings)
    observability = Observability("api", settings, open_tracer_provider)
    metrics = ApiMetrics(observability.metrics.registry)
    dropped = dropped_counter(observability.metrics.registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        model = bundle if bundle is not None else await asyncio.to_thread(read_model, settings)
        async with (
            observability.running() as traces_ready,
            _open_services(
                settings, clock, opener, model, metrics=metrics, dropped=dropped
            ) as services,
        ):
            await traces_ready
            app.state.services = services
            log.info("ready", model=model.identity, backend=settings.backend)
            yield

    def checks() -> dict[str, Check]:
        return _checks(app.state.services)

    async def refresh() -> None:
        services: Services = app.state.services
        await metrics.refresh_backlog(services.backend.publisher)
        await metrics.refresh_free_space(services.backend.blobs)

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
    # Routes of `include_router` are matched twice for each request, so they are added directly.
    for router in (
        image_routes.hot_router,  # first: routes are matched in this order
        what_routes.router,
        image_routes.router,
        list_routes.router,
        lookup_routes.router,
        thumbnail_routes.router,
        job_routes.router,
        job_stream_routes.router,
        ticket_routes.router,
        local_content_routes.router,
        dead_letter_routes.router,
        key_routes.router,
        usage_routes.router,
        webhook_routes.router,
        model_routes.router,
        health_routes(checks),
        *((page_routes(),) if settings.page else ()),
        *((docs_routes(app.title),) if settings.docs else ()),
    ):
        app.router.routes.extend(router.routes)
    observability.add_metrics_route(app, refresh, requires(Scope.OPERATOR))
    check_every_route(app.router.routes)
    install_openapi(app, keys_required=settings.keys_required, public_url=settings.public_url)
    install_problem_handlers(app)
    install_unknown_path(app)
    app.add_middleware(DecodeRequestBody)
    app.add_middleware(HeadAsGet)
    app.add_middleware(SameOriginOnly, allowed=settings.origins)
    if settings.api_hosts:
        app.add_middleware(AllowedHosts, hosts=settings.api_hosts, setting="ALLOWED_HOSTS")
    app.add_middleware(CloseOnUnreadBody)  # around all that refuses requests
    app.add_middleware(RespondWhenCancelled)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=(*_CORS_REQUEST_HEADERS, *settings.cors_headers)
            if "*" not in settings.cors_headers
            else ("*",),
            expose_headers=_CORS_RESPONSE_HEADERS,
        )
    if prefix := urlsplit(settings.public_url).path:
        app.add_middleware(PathPrefix, prefix=prefix)
    app.add_middleware(
        RequestContext, headers=security_headers(settings), observability=observability
    )
    return app


@asynccontextmanager
async def _open_services(
    settings: Settings,
    clock: Clock,
    opener: BackendOpener,
    bundle: AnyBundle,
    *,
    metrics: ApiMetrics,
    dropped: Counter,
) -> AsyncIterator[Services]:
    async with (
        opener(settings, clock) as backend,
        open_authenticator(settings, clock) as authenticator,
        open_audit(settings, dropped, clock) as audit,
        _open_models(settings, bundle, backend) as (models, trained_models),
        open_image_fetcher(enabled=settings.image_urls) as image_fetcher,
    ):
        resolver = PublicResolver(allow_private=settings.webhook_allow_private)
        batches = BatchReader(settings, backend)
        creator = JobCreator(backend, clock, settings.jobs, settings.delivery)
        streams = StreamRegistry(settings.max_streams, STREAM_SECONDS, metrics.streams)
        services = Services(
            settings=settings,
            clock=clock,
            bundle=bundle,
            backend=backend,
            models=models,
            trained_models=trained_models,
            images=ImageService(settings, backend, models, metrics, clock),
            thumbnails=Thumbnails(backend, enabled=settings.makes_thumbnails),
            jobs=JobService(
                settings,
                backend,
                models,
                metrics,
                batches=batches,
                creator=creator,
                resolver=resolver,
                clock=clock,
            ),
            trainings=TrainingService(
                settings, backend, models, batches=batches, creator=creator, clock=clock
            ),
            webhooks=Webhooks(backend, resolver, clock),
            uploads=UploadLimiter(upload_limits(settings)),
            image_fetcher=image_fetcher,
            streams=streams,
            success_headers=success_headers(settings),
            image_poller=streams.poller(
                "images",
                partial(look_up_views, backend.records.get_many),
                partial(image_event, public_url=settings.public_url),
            ),
            job_poller=streams.poller(
                "jobs",
                backend.jobs.get_many,
                partial(job_event, public_url=settings.public_url),
            ),
            authenticator=authenticator,
            audit=audit,
        )
        try:
            yield services
        finally:
            await services.close()
            await resolver.close()


@asynccontextmanager
async def _open_models(
    settings: Settings, bundle: AnyBundle, backend: Backend
) -> AsyncIterator[tuple[ModelCatalogue, TrainedModels]]:
    """The catalogue, and its trained models. `bundle` is the default model's."""
    extra = settings.extra_model_uris
    bundles = open_bundles(settings, extra)
    source = BundleModels(extra, bundles)
    try:
        await source.open()
        default = await asyncio.to_thread(ModelRef.of_bundle, bundle)
        bundled = ModelCatalogue(default, [source])
        trained = TrainedModels(backend, partial(bundled.find, PUBLIC_TENANT))
        yield ModelCatalogue(default, [source, trained]), trained
    finally:
        await asyncio.to_thread(bundles.close)
        await source.close()


def _checks(services: Services) -> dict[str, Check]:
    """The checks of `/ready`."""
    checks: dict[str, Check] = {
        "records": services.backend.records.ping,
        "blobs": services.backend.blobs.ping,
        "queue": services.backend.publisher.ping,
        "model": partial(check_model, services.bundle),
    }
    if services.authenticator is not None:
        checks["keys"] = services.authenticator.check
    return checks
