"""The API as an application: routes, middleware, and what is opened and closed around them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from starlette.requests import ClientDisconnect

from app import VERSION, dead_letter_routes, image_routes, local_blobs, seed_routes
from app.documentation import DESCRIPTION, TAGS, install_documentation
from app.image_service import ImageService, service_in
from app.metrics import ApiMetrics
from app.stopping import AnswerWhenCancelled
from app.unread_body import CloseOnUnreadBody
from core.backends import BackendOpener, open_backend
from core.clock import Clock, utc_now
from core.health import Check, health_routes
from core.model_bundle import read_bundle
from core.observation import FASTAPI_TELEMETRY, Observation
from core.problems import install_problem_handlers
from core.request_context import RequestContext
from core.settings import Settings

log = structlog.get_logger(__name__)


def create_app(
    settings: Settings, clock: Clock = utc_now, opener: BackendOpener = open_backend
) -> FastAPI:
    """The API under `settings`. Its lifespan opens the backend and reads the model's manifest."""
    observation = Observation("api", settings)
    metrics = ApiMetrics(observation.metrics.registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        bundle = await asyncio.to_thread(read_bundle, settings.model_uri)
        async with observation.running() as observed, opener(settings, clock) as backend:
            service = ImageService(settings, backend, bundle, metrics, clock)
            await observed
            app.state.service = service
            log.info("ready", model=bundle.identity, backend=settings.backend)
            try:
                yield
            finally:
                await service.close()

    def checks() -> dict[str, Check]:
        return service_in(app).checks()

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
        redoc_url=None,
        redirect_slashes=False,
    )
    # Taken over one by one: what `include_router` builds is matched twice for each request.
    for router in (
        image_routes.router,
        seed_routes.router,
        local_blobs.router,
        dead_letter_routes.router,
    ):
        app.router.routes.extend(router.routes)
    app.include_router(health_routes(checks))
    app.add_api_route("/", _to_docs, include_in_schema=False)
    observation.expose(app, refresh)
    install_documentation(app)
    install_problem_handlers(app)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_middleware(CloseOnUnreadBody)
    app.add_middleware(AnswerWhenCancelled)
    app.add_middleware(RequestContext, observation=observation)
    return app


async def _to_docs() -> Response:
    return RedirectResponse("/docs")


async def _on_disconnect(request: Request, error: Exception) -> Response:
    # Nobody reads this; the status (nginx's) says in our log what happened.
    return Response(status_code=499)
