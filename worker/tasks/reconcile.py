"""Reconcile stale records: publish their message again, or end them as `error`.

This is the last line of defense, for what the queue cannot repair: a message that was lost with its
queue, or that was never published because the process ended first. It also ends the records that a
job left unfinished, and purges old dead letters and old request counts of API keys.
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
from core.domain.records import UPLOAD_LOST, Record, RecordError, fail_unleased, republish, touch
from core.errors import Unavailable
from core.observability.logs import image_context
from core.observability.tracing import new_trace
from core.ports import UsageStore
from core.services.image_deletion import process_due_deletion
from core.services.job_images import CANCELLED
from core.services.publishing import publish

log = structlog.get_logger(__name__)

# Of one run, so that it ends in time.
MAX_RECORDS, MAX_LETTERS, MAX_COUNTS = 100, 500, 500
USAGE_DAYS = 400  # how long the request counts of a key are kept
MAX_FAILURES = 10  # so many failures mean that the store does not answer
MAX_PAGES = 10  # pages of MAX_RECORDS; a job that starts later can have a thousand records
OUTCOMES = (
    "republished",
    "lost",
    "expired",
    "cancelled",
    "waiting",
    "skipped",
    "deleted",
    "purged",
)


async def reconcile(
    backend: Backend, policy: DeliveryPolicy, now: datetime, limit: int = MAX_RECORDS
) -> dict[str, int]:
    """Reconcile at most `limit` stale records, oldest first, besides those of unfinished jobs.

    Any number of workers may run this at the same time. Raises Unavailable if a store does not
    answer; a record for which it does not answer does not delay other records. Returns counts:

    - `republished`: the record's message was published again
    - `lost`: failed, because the image is not stored
    - `expired`: failed, because the record is older than any message in the queue
    - `cancelled`: failed, because the only job that requested the image is over
    - `waiting`: left to the unfinished job that requested the image, or to the message that was
      published last (`Record.may_republish`)
    - `skipped`: changed by another process since the read
    - `deleted`: deletions of images that were completed, cleaned up or forgotten
    - `purged`: dead letters whose retention has ended
    """
    before = now - timedelta(seconds=policy.stale_after)
    counts: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
    failures: list[Unavailable] = []
    for _ in range(MAX_PAGES):
        records = await backend.records.stale(before, limit)
        over = await _jobs_over(backend, records, now)
        waiting = [
            record
            for record in records
            if (not over[_job_key(record)] if record.job else _waits(record, policy, now))
        ]
        # Mark them, so that the next page has other records.
        marks = await asyncio.gather(*(_mark(record, backend, before) for record in waiting))
        failures += [failure for failure in marks if failure is not None]
        counts["waiting"] += len(waiting)
        left = {record.key for record in waiting}
        for record in records:
            if len(failures) >= MAX_FAILURES:
                raise failures[0]
            if record.key in left:
                continue
            # The trace of the lost message is lost too, so this starts a new one.
            with image_context(record.key), new_trace("reconcile record"):
                try:
                    counts[await _reconcile_record(record, backend, policy, now, before)] += 1
                except Unavailable as unavailable:
                    log.warning("record not reconciled", reason=unavailable.detail)
                    failures.append(unavailable)
        if len(records) < limit or len(waiting) < len(records):
            break
    for deletion in await backend.records.due_deletions(now, limit):
        try:
            await process_due_deletion(backend, deletion)
            counts["deleted"] += 1
        except Unavailable as unavailable:
            log.warning("deletion not completed", reason=unavailable.detail)
            failures.append(unavailable)
            break
    too_old = now - timedelta(seconds=policy.dead_letter_retention)
    counts["purged"] = await backend.dead_letters.purge(too_old, MAX_LETTERS)
    if any(count for outcome, count in counts.items() if outcome != "waiting"):
        log.info("reconciled", **counts)
    if failures:
        raise failures[0]
    return dict(counts)


async def purge_usage(usage: UsageStore, now: datetime) -> int:
    """Delete at most `MAX_COUNTS` counts that are older than `USAGE_DAYS`. Returns how many.

    Raises Unavailable: the next run deletes the remaining counts.
    """
    purged = await usage.purge(now.date() - timedelta(days=USAGE_DAYS), MAX_COUNTS)
    if purged:
        log.info("usage purged", rows=purged)
    return purged


def _job_key(record: Record) -> JobKey:
    return JobKey(record.key.tenant, record.job)


async def _jobs_over(
    backend: Backend, records: Sequence[Record], now: datetime
) -> dict[JobKey, bool]:
    """Whether each job that alone requested one of the records is over or deleted."""
    keys = {_job_key(record) for record in records if record.job}
    found = await backend.jobs.get_many(list(keys)) if keys else {}
    return {key: key not in found or found[key].over(now) for key in keys}


def _is_expired(record: Record, policy: DeliveryPolicy, now: datetime) -> bool:
    return now - record.submitted_at > timedelta(seconds=policy.retention)


def _waits(record: Record, policy: DeliveryPolicy, now: datetime) -> bool:
    """Whether the record is left to its last message. Hours of refusals would pile up others."""
    early = not record.may_republish(now, timedelta(seconds=policy.stale_after))
    return early and not _is_expired(record, policy, now)


async def _mark(record: Record, backend: Backend, before: datetime) -> Unavailable | None:
    """Mark the record as reconciled. Returns the failure, if any."""
    try:
        await backend.records.change(record.key, touch(before))
    except Unavailable as unavailable:
        return unavailable
    return None


async def _reconcile_record(
    record: Record, backend: Backend, policy: DeliveryPolicy, now: datetime, before: datetime
) -> str:
    """Publish the record's message or fail the record. Returns one of `OUTCOMES`."""
    if record.job:
        return await _fail(record, backend, "cancelled", CANCELLED, before)
    age = now - record.submitted_at
    if _is_expired(record, policy, now):
        detail = f"The image was not classified within {policy.retention:g} seconds."
        return await _fail(record, backend, "expired", RecordError("expired", detail, True), before)
    if not await backend.blobs.exists(record.key.blob_name):
        detail = "The upload was interrupted, or the image was deleted: upload it again."
        return await _fail(record, backend, "lost", RecordError(UPLOAD_LOST, detail, True), before)
    # Of several reconcilers, only the one that marks the record publishes its message.
    again = republish(before, timedelta(seconds=policy.stale_after))
    if await backend.records.change(record.key, again) is None:
        return "skipped"
    await publish(backend.publisher, ClassifyImage(record.key, priority=record.priority))
    log.warning("record republished", status=record.status, age_seconds=round(age.total_seconds()))
    return "republished"


async def _fail(
    record: Record, backend: Backend, outcome: str, error: RecordError, before: datetime
) -> str:
    """Fail the record unless it changed since the read. Returns `outcome`, or `skipped`."""
    # A client's request clears the record's job and leaves `updated_at`, so both are compared.
    end = fail_unleased(error, untouched_since=before, only_for=record.job)
    if await backend.records.change(record.key, end) is None:
        return "skipped"
    level = logging.INFO if record.job else logging.ERROR
    log.log(level, "record ended", code=error.code, status=record.status)
    return outcome
