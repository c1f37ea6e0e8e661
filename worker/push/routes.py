"""The HTTP edge of the worker: push envelopes in, acknowledgements out.

204 acknowledges; every other answer is a refusal and leads to another delivery.
"""

import functools
import json
from collections.abc import Awaitable, Callable

import structlog
from fastapi import APIRouter, Request, Response

from core.domain.messages import PushEnvelope, RunJob, message_of
from core.domain.policy import (
    CLASSIFY_PATH,
    DEAD_LETTER_PATH,
    JOBS_PATH,
    RECONCILE_PATH,
    SCHEDULE_PATH,
)
from core.errors import (
    Forbidden,
    GlimpseError,
    MalformedEnvelope,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from core.http.request_route import RequestRoute
from core.observability.setup import Observation
from worker.context import Workbench
from worker.errors import EnvelopeTooLarge, InferenceFailed
from worker.push.body import read_body
from worker.push.openapi import ENVELOPE_BODY, refusals
from worker.push.shutdown import unless_stopped
from worker.push.span import delivery
from worker.tasks.classify_image import classify
from worker.tasks.dead_letters import UNREADABLE, bury
from worker.tasks.job_schedule import look_after_jobs
from worker.tasks.reconcile import purge_usage, reconcile
from worker.tasks.run_job import run_job

log = structlog.get_logger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


def push_routes(
    bench: Callable[[], Workbench],
    observation: Observation,
    admit: Callable[[Request], Awaitable[None]] | None = None,
) -> APIRouter:
    """The routes; `bench()` gives the process's workbench at the time of the request.

    `admit` raises for a caller who may not push, before anything of the request's body is read.
    """
    router = APIRouter(tags=["push"], route_class=RequestRoute)

    def admitted(endpoint: Endpoint) -> Endpoint:
        if admit is None:
            return endpoint

        @functools.wraps(endpoint)
        async def ask_first(request: Request) -> Response:
            await admit(request)
            return await endpoint(request)

        return ask_first

    @router.post(
        CLASSIFY_PATH,
        status_code=204,
        summary="Classify the image that a push envelope names",
        responses=refusals(
            MalformedEnvelope,
            Unauthenticated,
            Forbidden,
            NotFound,
            EnvelopeTooLarge,
            InferenceFailed,
            Unavailable,
        ),
        openapi_extra=ENVELOPE_BODY,
    )
    @admitted
    async def generate_annotations(request: Request) -> Response:
        envelope = PushEnvelope.parse(await read_body(request))
        message, here = envelope.classify_image(), bench()
        with delivery(request, envelope, message, here.backend.publisher, observation.tracer):
            try:
                with unless_stopped():
                    await classify(message, here)
            except GlimpseError as error:
                here.metrics.ended(error.code)
                raise
        return Response(status_code=204)

    @router.post(
        JOBS_PATH,
        status_code=204,
        summary="Bring the job on that a push envelope names",
        responses=refusals(
            MalformedEnvelope, Unauthenticated, Forbidden, EnvelopeTooLarge, Unavailable
        ),
        openapi_extra=ENVELOPE_BODY,
    )
    @admitted
    async def run(request: Request) -> Response:
        envelope = PushEnvelope.parse(await read_body(request))
        message, here = RunJob.from_attributes(envelope.message.attributes), bench()
        with (
            delivery(request, envelope, message, here.backend.publisher, observation.tracer),
            unless_stopped(),
        ):
            await run_job(message, here)
        return Response(status_code=204)

    @router.post(
        DEAD_LETTER_PATH,
        status_code=204,
        summary="Keep a message that used up its deliveries, and end what waited for it",
        responses=refusals(Unauthenticated, Forbidden, Unavailable),
        openapi_extra=ENVELOPE_BODY,
    )
    @admitted
    async def generate_annotations_dlq(request: Request) -> Response:
        try:
            envelope = PushEnvelope.parse(await read_body(request))
        except (MalformedEnvelope, EnvelopeTooLarge) as error:
            # No envelope, so no letter of a queue's. A refusal would bring it back for ever.
            log.error("dead letter unreadable", detail=error.detail)
            bench().metrics.buried(UNREADABLE)
            return Response(status_code=204)
        here = bench()
        try:
            message = message_of(envelope.message.attributes)
        except MalformedEnvelope:
            await bury(envelope, here)
            return Response(status_code=204)
        with delivery(request, envelope, message, here.backend.publisher, observation.tracer):
            await bury(envelope, here)
        return Response(status_code=204)

    @router.post(
        RECONCILE_PATH,
        tags=["operations"],
        summary="Look after records that stand still",
        responses=refusals(Unauthenticated, Forbidden, Unavailable),
    )
    @admitted
    async def reconcile_stale(request: Request) -> Response:
        here = bench()
        now = here.clock()
        counts = await reconcile(here.backend, here.settings.delivery, now)
        here.metrics.reconciled({k: n for k, n in counts.items() if k != "purged"})
        counts["usage_purged"] = await purge_usage(here.usage, now)
        return Response(json.dumps(counts).encode(), media_type="application/json")

    @router.post(
        SCHEDULE_PATH,
        tags=["operations"],
        summary="Look after jobs whose time has come",
        responses=refusals(Unauthenticated, Forbidden, Unavailable),
    )
    @admitted
    async def look_after_due_jobs(request: Request) -> Response:
        here = bench()
        counts = await look_after_jobs(here, here.clock(), tracer=observation.tracer)
        return Response(json.dumps(counts).encode(), media_type="application/json")

    return router
