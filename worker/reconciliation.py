"""Records that stand still: their message is published anew, or they end as `error`.

The last line of defence, for what the queue cannot repair by itself: a message that was lost with
its queue, or that was never published because the process died before it answered.
"""

from datetime import datetime, timedelta

import structlog

from core.backends import Backend
from core.policy import DeliveryPolicy
from core.publishing import publish
from core.records import Record, RecordError
from core.telemetry import image_context
from core.tracing import current

log = structlog.get_logger(__name__)


async def reconcile(
    backend: Backend, policy: DeliveryPolicy, now: datetime, limit: int = 100
) -> dict[str, int]:
    """Look after at most `limit` stale records, oldest first.

    Returns how many were `republished`, `expired`, or `skipped` because someone else moved them
    meanwhile; that is why any number of these may run at once. Raises Unavailable, after which the
    rest are still stale and wait for the next run.
    """
    before = now - timedelta(seconds=policy.stale_after)
    counts = {"republished": 0, "expired": 0, "skipped": 0}
    for record in await backend.records.stale(before, limit):
        # The message that was lost took its trace with it.
        with image_context(record.key), current().new_trace("reconcile record"):
            counts[await _look_after(record, backend, policy, now, before)] += 1
    return counts


async def _look_after(
    record: Record, backend: Backend, policy: DeliveryPolicy, now: datetime, before: datetime
) -> str:
    age = now - record.submitted_at
    if age > timedelta(seconds=policy.retention):
        detail = f"The image was not classified within {policy.retention:g} seconds."
        error = RecordError("expired", detail, retryable=True)
        if not await backend.records.fail(record.key, error):
            return "skipped"
        log.error("record expired", age_seconds=round(age.total_seconds()))
        return "expired"
    # The touch is the turn: of several reconcilers one wins it, and only that one publishes.
    if not await backend.records.touch(record.key, before):
        return "skipped"
    await publish(backend.publisher, record.key)
    log.warning("record republished", status=record.status, age_seconds=round(age.total_seconds()))
    return "republished"
