"""The worker's edge for notifications: a channel of their own, so that none delays an image."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response

from core.domain.messages import Notify, PushEnvelope
from core.domain.policy import NOTIFICATIONS_PATH
from core.domain.records import RecordError
from core.errors import Forbidden, MalformedEnvelope, Overloaded, Unauthenticated, Unavailable
from core.http.request_route import RequestRoute
from core.observability.setup import Observation
from worker.context import Workbench
from worker.errors import EnvelopeTooLarge
from worker.notifications.notifier import Notifier, Undeliverable
from worker.push.body import read_body
from worker.push.openapi import ENVELOPE_BODY, refusals
from worker.push.shutdown import unless_stopped
from worker.push.span import delivery
from worker.tasks.dead_letters import letter_of


def notification_routes(
    bench: Callable[[], Workbench],
    notifier: Callable[[], Notifier],
    observation: Observation,
    admit: Callable[[Request], Awaitable[None]] | None = None,
) -> APIRouter:
    """As `push_routes`, for the notifications' subscription."""
    router = APIRouter(tags=["push"], route_class=RequestRoute)

    @router.post(
        NOTIFICATIONS_PATH,
        status_code=204,
        summary="Tell a receiver, or find out who they are",
        responses=refusals(
            MalformedEnvelope,
            Unauthenticated,
            Forbidden,
            EnvelopeTooLarge,
            Overloaded,
            Unavailable,
        ),
        openapi_extra=ENVELOPE_BODY,
    )
    async def notify(request: Request) -> Response:
        if admit is not None:
            await admit(request)
        envelope = PushEnvelope.parse(await read_body(request))
        message, here = Notify.from_attributes(envelope.message.attributes), bench()
        with (
            delivery(request, envelope, message, here.backend.publisher, observation.tracer),
            unless_stopped(),
        ):
            try:
                await notifier().notify(message)
            except Undeliverable as failure:
                # Kept, and acknowledged: the queue would bring it again for hours, for nothing.
                reason = RecordError(failure.code, failure.detail, retryable=True)
                letter = letter_of(envelope, reason, here.clock())
                await here.backend.dead_letters.add(letter)
                here.metrics.buried(failure.code)
        return Response(status_code=204)

    return router
