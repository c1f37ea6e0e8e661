"""Records that stand still: their message is published anew, or they end as `error`.

The last line of defence, for what the queue cannot repair by itself: a message that was lost with
its queue, or that was never published because the process died before it answered. The same run
clears away dead letters that are too old.
"""

from datetime import datetime, timedelta

import structlog

from core.backends import Backend
from core.messages import ClassifyImage
from core.policy import DeliveryPolicy
from core.publishing import publish
from core.records import UPLOAD_LOST, Record, RecordError
from core.telemetry import image_context
from core.tracing import current

log = structlog.get_logger(__name__)

RECORDS, LETTERS = 100, 500  # most that one run looks after, so that it ends in time


async def reconcile(
    backend: Backend, policy: DeliveryPolicy, now: datetime, limit: int = RECORDS
) -> dict[str, int]:
    """Look after at most `limit` stale records, oldest first.

    Returns how many were `republished`, failed because their image is `lost` or because they are
    `expired`, or `skipped` because someone else moved them meanwhile; that is why any number of
    these may run at once. `purged` counts dead letters past their retention. Raises Unavailable,
    after which the rest are still stale and wait for the next run.
    """
    before = now - timedelta(seconds=policy.stale_after)
    counts = {"republished": 0, "lost": 0, "expired": 0, "skipped": 0, "purged": 0}
    for record in await backend.records.stale(before, limit):
        # The message that was lost took its trace with it.
        with image_context(record.key), current().new_trace("reconcile record"):
            counts[await _look_after(record, backend, policy, now, before)] += 1
    too_old = now - timedelta(seconds=policy.dead_letter_retention)
    counts["purged"] = await backend.dead_letters.purge(too_old, LETTERS)
    if any(counts.values()):
        log.info("reconciled", **counts)
    return counts


async def _look_after(
    record: Record, backend: Backend, policy: DeliveryPolicy, now: datetime, before: datetime
) -> str:
    age = now - record.submitted_at
    if age > timedelta(seconds=policy.retention):
        detail = f"The image was not classified within {policy.retention:g} seconds."
        return await _end(record, backend, "expired", RecordError("expired", detail, True), before)
    if not await backend.blobs.exists(record.key.blob_name):
        detail = "The upload was interrupted, or its image is gone: upload it again."
        return await _end(record, backend, "lost", RecordError(UPLOAD_LOST, detail, True), before)
    # The touch is the turn: of several reconcilers one wins it, and only that one publishes.
    if not await backend.records.touch(record.key, before):
        return "skipped"
    await publish(backend.publisher, ClassifyImage(record.key, priority=record.priority))
    log.warning("record republished", status=record.status, age_seconds=round(age.total_seconds()))
    return "republished"


async def _end(
    record: Record, backend: Backend, outcome: str, error: RecordError, before: datetime
) -> str:
    # Only while it still stands: an upload that found it may have moved it since.
    if not await backend.records.fail(record.key, error, untouched_since=before):
        return "skipped"
    log.error("record ended", code=error.code, status=record.status)
    return outcome
