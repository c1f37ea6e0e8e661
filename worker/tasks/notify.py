"""Notify the receivers of a job's event."""

from core.domain.messages import Notify, PushEnvelope
from core.domain.records import RecordError
from worker.context import WorkerContext
from worker.notifications.notifier import Undeliverable
from worker.tasks.dead_letters import letter_of


async def notify(message: Notify, envelope: PushEnvelope, ctx: WorkerContext) -> None:
    """Deliver the notification, or keep it as a dead letter if no retry can deliver it.

    Return means: acknowledge the message. Otherwise raises as `Notifier.notify` does.
    """
    try:
        await ctx.notifier.notify(message)
    except Undeliverable as failure:
        reason = RecordError(failure.code, failure.detail, retryable=True)
        await ctx.backend.dead_letters.add(letter_of(envelope, reason, ctx.clock()))
        ctx.metrics.dead_letter(failure.code)
