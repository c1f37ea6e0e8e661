"""Records that stand still: their message is published anew, or they end as `error`.

The last line of defence, for what the queue cannot repair by itself: a message that was lost with
its queue, or that was never published because the process died before it answered. What a job left
behind ends here too. The same run clears away dead letters and counts of keys that are too old.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog

from core.backends import Backend
from core.domain.jobs import JobKey
from core.domain.messages import ClassifyImage
from core.domain.policy import DeliveryPolicy
from core.domain.records import UPLOAD_LOST, Record, RecordError, fail_unleased, touch
from core.errors import Unavailable
from core.observability.logs import image_context
from core.observability.tracing import current
from core.ports import UsageStore
from core.services.job_images import CANCELLED
from core.services.publishing import publish

log = structlog.get_logger(__name__)

# Most that one run looks after, so that it ends in time: records, dead letters, days of keys.
RECORDS, LETTERS, COUNTS = 100, 500, 500
USAGE_DAYS = 400  # how long the counts of a key are kept
FAILURES = 10  # after so many it is the store that does not answer, and no single record
PAGES = 10  # of so many records; a job that waits for its time has a thousand of them
OUTCOMES = ("republished", "lost", "expired", "cancelled", "waiting", "skipped", "purged")


async def reconcile(
    backend: Backend, policy: DeliveryPolicy, now: datetime, limit: int = RECORDS
) -> dict[str, int]:
    """Look after at most `limit` stale records, oldest first, and pass over those of live jobs.

    Returns how many were `republished`, failed because their image is `lost` or because they are
    `expired`, `cancelled` because the one job that asked for them is over, `waiting` since that one
    is not, or `skipped` because someone else moved them meanwhile; that is why any number of
    these may run at once. `purged` counts dead letters past their retention. Raises Unavailable
    where a store did not answer; a record that it was asked for in vain holds up no other.
    """
    before = now - timedelta(seconds=policy.stale_after)
    counts: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
    failures: list[Unavailable] = []
    for _ in range(PAGES):
        records = await backend.records.stale(before, limit)
        over = await _jobs_over(backend, records, now)
        waiting = [record for record in records if record.job and not over[_job_key(record)]]
        # The job publishes its images again where it does not get on; until its end they are no
        # business of ours. Marked, they make way for those behind them.
        tries = await asyncio.gather(*(_make_way(each, backend, before) for each in waiting))
        failures += [unavailable for unavailable in tries if unavailable is not None]
        counts["waiting"] += len(waiting)
        for record in records:
            if len(failures) >= FAILURES:
                raise failures[0]
            if record.job and not over[_job_key(record)]:
                continue
            # The message that was lost took its trace with it.
            with image_context(record.key), current().new_trace("reconcile record"):
                try:
                    counts[await _look_after(record, backend, policy, now, before)] += 1
                except Unavailable as unavailable:
                    log.warning("record not looked after", reason=unavailable.detail)
                    failures.append(unavailable)
        if len(records) < limit or len(waiting) < len(records):
            break
    too_old = now - timedelta(seconds=policy.dead_letter_retention)
    counts["purged"] = await backend.dead_letters.purge(too_old, LETTERS)
    if any(count for outcome, count in counts.items() if outcome != "waiting"):
        log.info("reconciled", **counts)
    if failures:
        raise failures[0]
    return dict(counts)


async def purge_usage(usage: UsageStore, now: datetime, limit: int = COUNTS) -> int:
    """Delete at most `limit` counts that are older than `USAGE_DAYS`. Returns the number deleted.

    Raises Unavailable, after which they are still there and wait for the next run.
    """
    purged = await usage.purge(now.date() - timedelta(days=USAGE_DAYS), limit)
    if purged:
        log.info("usage purged", rows=purged)
    return purged


def _job_key(record: Record) -> JobKey:
    return JobKey(record.key.tenant, record.job)


async def _jobs_over(
    backend: Backend, records: Sequence[Record], now: datetime
) -> dict[JobKey, bool]:
    """Of every job that alone asked for one of these: whether nobody waits for it any more."""
    keys = {_job_key(record) for record in records if record.job}
    found = await backend.jobs.get_many(list(keys)) if keys else {}
    return {key: key not in found or found[key].over(now) for key in keys}


async def _make_way(record: Record, backend: Backend, before: datetime) -> Unavailable | None:
    try:
        await backend.records.change(record.key, touch(before))
    except Unavailable as unavailable:
        return unavailable
    return None


async def _look_after(
    record: Record, backend: Backend, policy: DeliveryPolicy, now: datetime, before: datetime
) -> str:
    if record.job:
        return await _end(record, backend, "cancelled", CANCELLED, before)
    age = now - record.submitted_at
    if age > timedelta(seconds=policy.retention):
        detail = f"The image was not classified within {policy.retention:g} seconds."
        return await _end(record, backend, "expired", RecordError("expired", detail, True), before)
    if not await backend.blobs.exists(record.key.blob_name):
        detail = "The upload was interrupted, or its image is gone: upload it again."
        return await _end(record, backend, "lost", RecordError(UPLOAD_LOST, detail, True), before)
    # The touch is the turn: of several reconcilers one wins it, and only that one publishes.
    if await backend.records.change(record.key, touch(before)) is None:
        return "skipped"
    await publish(backend.publisher, ClassifyImage(record.key, priority=record.priority))
    log.warning("record republished", status=record.status, age_seconds=round(age.total_seconds()))
    return "republished"


async def _end(
    record: Record, backend: Backend, outcome: str, error: RecordError, before: datetime
) -> str:
    # Only while it still stands: an upload that found it may have moved it since.
    of = record.job
    end = fail_unleased(error, untouched_since=before, only_for=of)
    if await backend.records.change(record.key, end) is None:
        return "skipped"
    level = logging.INFO if of else logging.ERROR
    log.log(level, "record ended", code=error.code, status=record.status)
    return outcome
