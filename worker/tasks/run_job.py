"""Run a job: publish a message for each image that is not classified or embedded yet.

A crash may follow any step, and several deliveries may run at the same time. Each delivery reads
which items are open and publishes those. An image that is published twice is classified once.
"""

import asyncio
from collections.abc import Awaitable, Iterable

import structlog

from core.domain import jobs
from core.domain.jobs import ItemState, Job, JobItem, JobKey, JobStatus
from core.domain.messages import ClassifyImage, RunJob
from core.domain.records import Record, RecordError, RecordKey, Status
from core.services.job_images import CANCELLED, request_image
from core.services.publishing import publish
from worker.context import WorkerContext
from worker.tasks.embed_image import fit_when_embedded, publish_embeddings
from worker.tasks.job_items import announce_completion, complete_items

log = structlog.get_logger(__name__)

PAGE_SIZE = 100  # items; a cancellation takes effect between two pages
MISSING = RecordError("image_missing", "The image is not stored: upload it.", True)


async def run_job(message: RunJob, ctx: WorkerContext) -> None:
    """Publish the open items and complete those with a known result. Return means: acknowledge.

    Does nothing if the job has ended, may not start yet, or is not stored completely: the scheduler
    starts it later. Raises Unavailable, after which another delivery continues.
    """
    store, key = ctx.backend.jobs, JobKey(message.tenant, message.job)
    job = await store.change(key, jobs.start(ctx.job_policy))
    if job is not None:
        log.info("job started", items=job.counts.total, priority=job.priority.value)
    else:
        job = await store.get(key)
    published, after = 0, -1
    while job is not None and job.status is JobStatus.RUNNING and not job.over(ctx.clock()):
        page = await store.items(key, PAGE_SIZE, after, ItemState.OPEN)
        if job.training is None:
            published += await _publish_items(page, job, ctx)
        else:
            published += await publish_embeddings(page, job, ctx)
        if len(page) < PAGE_SIZE:
            if job.training is not None:
                await fit_when_embedded(job, ctx)
            log.info("job items published", published=published)
            await announce_completion(await store.refresh_counts(key), ctx)
            return
        after = page[-1].position
        job = await store.get(key)
    log.info("job not continued", status=None if job is None else job.status.value)


async def _publish_items(items: Iterable[JobItem], job: Job, ctx: WorkerContext) -> int:
    """Publish or complete each item. Returns the number of published messages."""
    keys = {item.position: _record_key(item, job) for item in items}
    found = await ctx.backend.records.get_many([key for key in keys.values() if key])
    outcomes: dict[int, RecordError | None] = {}
    published = await _all(
        _publish_item(position, None if key is None else found.get(key), job, outcomes, ctx)
        for position, key in keys.items()
    )
    await complete_items(job.key, outcomes, ctx)
    return sum(published)


async def _publish_item(
    position: int,
    record: Record | None,
    job: Job,
    outcomes: dict[int, RecordError | None],
    ctx: WorkerContext,
) -> bool:
    """Publish a message for the item and return True, or add its result to `outcomes`."""
    backend = ctx.backend
    while record is not None:
        key = record.key
        if record.status is Status.SUCCESS or (
            record.status is Status.ERROR and not _needs_another_attempt(record, job)
        ):
            outcomes[position] = record.error
            return False
        if await request_image(backend, record, job, ctx.clock()):
            message = ClassifyImage(key, priority=job.priority, job=job.key.id, position=position)
            await publish(backend.publisher, message)
            return True
        record = await backend.records.get(key)  # it changed since the read
    outcomes[position] = MISSING
    return False


def _needs_another_attempt(record: Record, job: Job) -> bool:
    """False if the error occurred while the job ran: then it is the item's result."""
    assert record.error is not None
    before = job.started_at is None or record.updated_at < job.started_at
    return record.may_retry and (before or record.error.code == CANCELLED.code)


def _record_key(item: JobItem, job: Job) -> RecordKey | None:
    return RecordKey(job.key.tenant, item.image_hash, job.model) if item.image_hash else None


async def _all(steps: Iterable[Awaitable[bool]]) -> list[bool]:
    """The results after all steps have ended; raises the first step's exception, if any."""
    outcomes = await asyncio.gather(*steps, return_exceptions=True)
    results: list[bool] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results
