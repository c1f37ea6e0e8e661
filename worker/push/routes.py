"""The HTTP routes of the worker, which the queue and the scheduler call.

204 acknowledges a message. Every other status refuses it, and the queue delivers it again.
"""

import structlog
from fastapi import APIRouter, Depends, Request, Response

from core.domain.messages import (
    EmbedImage,
    FitModel,
    MakeThumbnail,
    PushEnvelope,
    message_of,
)
from core.domain.policy import (
    CLASSIFY_PATH,
    DEAD_LETTER_PATH,
    JOBS_PATH,
    NOTIFICATIONS_PATH,
    RECONCILE_PATH,
    SCHEDULE_PATH,
)
from core.errors import (
    Forbidden,
    GlimpseError,
    MalformedEnvelope,
    NotFound,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from core.http.openapi import refusals
from core.http.request_route import RequestRoute
from worker.context import context_of
from worker.errors import EnvelopeTooLarge, InferenceFailed
from worker.push.body import read_body
from worker.push.openapi import ENVELOPE_BODY
from worker.push.shutdown import refuse_on_shutdown
from worker.push.span import delivery_span
from worker.tasks.classify_image import classify_image
from worker.tasks.dead_letters import UNREADABLE, handle_dead_letter, keep_unreadable
from worker.tasks.embed_image import embed_image
from worker.tasks.fit_model import fit_model
from worker.tasks.job_schedule import process_due_jobs
from worker.tasks.make_thumbnail import make_thumbnail
from worker.tasks.notify import notify
from worker.tasks.reconcile import purge_usage, reconcile
from worker.tasks.run_job import run_job

log = structlog.get_logger(__name__)

UNAUTHORIZED = (Unauthenticated, Forbidden, Unavailable)


async def authenticate(request: Request) -> None:
    """Runs before FastAPI or an endpoint reads the body."""
    await context_of(request).authenticate(request)


router = APIRouter(tags=["push"], dependencies=[Depends(authenticate)])
# For the route that every image takes: FastAPI's work for each call would be a measurable part of
# its cost. Its endpoint authenticates by itself.
hot_router = APIRouter(tags=["push"], route_class=RequestRoute)


@hot_router.post(
    CLASSIFY_PATH,
    status_code=204,
    summary="Classify or embed the image that a push envelope names",
    responses=refusals(
        *UNAUTHORIZED, MalformedEnvelope, NotFound, EnvelopeTooLarge, InferenceFailed
    ),
    openapi_extra=ENVELOPE_BODY,
)
async def generate_annotations(request: Request) -> Response:
    await authenticate(request)
    envelope = PushEnvelope.parse(await read_body(request))
    message, ctx = envelope.image_message(), context_of(request)
    if isinstance(message, MakeThumbnail):
        with delivery_span(request, envelope, message, ctx), refuse_on_shutdown():
            await make_thumbnail(message, ctx)
        return Response(status_code=204)
    with delivery_span(request, envelope, message, ctx):
        try:
            with refuse_on_shutdown():
                if isinstance(message, EmbedImage):
                    await embed_image(message, ctx)
                else:
                    await classify_image(message, ctx)
        except GlimpseError as error:
            ctx.metrics.classification_ended(error.code)
            raise
    return Response(status_code=204)


@router.post(
    JOBS_PATH,
    status_code=204,
    summary="Run the job that a push envelope names, or fit its model",
    responses=refusals(*UNAUTHORIZED, MalformedEnvelope, EnvelopeTooLarge),
    openapi_extra=ENVELOPE_BODY,
)
async def run(request: Request) -> Response:
    envelope = PushEnvelope.parse(await read_body(request))
    message, ctx = envelope.job_message(), context_of(request)
    with delivery_span(request, envelope, message, ctx), refuse_on_shutdown():
        if isinstance(message, FitModel):
            await fit_model(message, ctx)
        else:
            await run_job(message, ctx)
    return Response(status_code=204)


@router.post(
    NOTIFICATIONS_PATH,
    status_code=204,
    summary="Notify a receiver, or publish one message for each receiver",
    responses=refusals(*UNAUTHORIZED, MalformedEnvelope, EnvelopeTooLarge, Overloaded),
    openapi_extra=ENVELOPE_BODY,
)
async def send_notification(request: Request) -> Response:
    envelope = PushEnvelope.parse(await read_body(request))
    message, ctx = envelope.notification(), context_of(request)
    with delivery_span(request, envelope, message, ctx), refuse_on_shutdown():
        await notify(message, envelope, ctx)
    return Response(status_code=204)


@router.post(
    DEAD_LETTER_PATH,
    status_code=204,
    summary="Keep a message that used up its deliveries, and end what waits for it",
    responses=refusals(*UNAUTHORIZED),
    openapi_extra=ENVELOPE_BODY,
)
async def generate_annotations_dlq(request: Request) -> Response:
    ctx = context_of(request)
    try:
        envelope = PushEnvelope.parse(await read_body(request))
    except (MalformedEnvelope, EnvelopeTooLarge) as error:
        # The queue sends only envelopes. A refusal would make any other sender repeat this forever.
        log.error("dead letter unreadable", detail=error.detail)
        ctx.metrics.dead_letter(UNREADABLE)
        return Response(status_code=204)
    try:
        message = message_of(envelope.message.attributes)
    except MalformedEnvelope as error:
        await keep_unreadable(envelope, error, ctx)
        return Response(status_code=204)
    with delivery_span(request, envelope, message, ctx), refuse_on_shutdown():
        await handle_dead_letter(message, envelope, ctx)
    return Response(status_code=204)


@router.post(
    RECONCILE_PATH,
    tags=["operations"],
    summary="Reconcile stale records",
    responses=refusals(*UNAUTHORIZED),
)
async def reconcile_stale(request: Request) -> dict[str, int]:
    ctx = context_of(request)
    now = ctx.clock()
    counts = await reconcile(ctx.backend, ctx.settings.delivery, now)
    ctx.metrics.reconciled({outcome: n for outcome, n in counts.items() if outcome != "purged"})
    counts["usage_purged"] = await purge_usage(ctx.usage, now)
    return counts


@router.post(
    SCHEDULE_PATH,
    tags=["operations"],
    summary="Process the jobs that are due",
    responses=refusals(*UNAUTHORIZED),
)
async def process_schedule(request: Request) -> dict[str, int]:
    ctx = context_of(request)
    return await process_due_jobs(ctx, ctx.clock())
