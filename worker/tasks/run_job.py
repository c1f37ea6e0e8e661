"""Bringing a job on: a message for each image that still has to be classified.

Any step may be the last one before a crash, and several deliveries may do the same at once: each
finds what is open and publishes that. What is published twice is classified once.
"""

import asyncio
from collections.abc import Awaitable, Iterable
from functools import partial

import structlog

from core.domain import jobs
from core.domain.jobs import ItemState, Job, JobItem, JobKey, JobStatus
from core.domain.messages import ClassifyImage, RunJob
from core.domain.records import Record, RecordError, RecordKey, Status
from core.services.job_images import CANCELLED, ask_for
from core.services.publishing import publish
from worker.context import Workbench
from worker.tasks.job_items import close, settle_many

log = structlog.get_logger(__name__)

PAGE = 100  # items that are brought on at once; between two pages a cancellation is noticed
MISSING = RecordError("image_missing", "The image is not stored: upload it.", True)


async def run_job(message: RunJob, bench: Workbench) -> None:
    """Publish what is open of the job and settle what is known. Returning acknowledges the message.

    Does nothing for a job that has ended, may not begin yet, or is not stored completely: the
    scheduler begins it when it may. Raises Unavailable, after which another delivery goes on.
    """
    store, key = bench.backend.jobs, JobKey(message.tenant, message.job)
    job = await store.change(key, partial(jobs.started, policy=bench.jobs))
    if job is not None:
        log.info("job started", items=job.counts.total, priority=job.priority.value)
    else:
        job = await store.get(key)
    published, after = 0, -1
    first: set[int] = set()  # open items that others may be twins of
    while job is not None and job.status is JobStatus.RUNNING and not job.over(bench.clock()):
        page = await store.items(key, PAGE, after, ItemState.OPEN)
        first.update(item.position for item in page if item.twin_of is None)
        # Twins are settled with the item that they are like. Two requests with the same key, and an
        # image that came between them, can leave a twin of one that has failed: it goes by itself.
        alone = [item for item in page if item.twin_of not in first]
        published += await _bring_on(alone, job, bench)
        if len(page) < PAGE:
            log.info("job brought on", published=published)
            await close(await store.refresh(key), bench)
            return
        after = page[-1].position
        job = await store.get(key)
    log.info("job left alone", status=None if job is None else job.status.value)


async def _bring_on(items: Iterable[JobItem], job: Job, bench: Workbench) -> int:
    """How many of the items a message was published for."""
    wanted = {item.position: _record_key(item, job) for item in items}
    found = await bench.backend.records.get_many([key for key in wanted.values() if key])
    known: dict[int, RecordError | None] = {}
    published = await _all(
        _bring_on_item(position, None if key is None else found.get(key), job, known, bench)
        for position, key in wanted.items()
    )
    await settle_many(job.key, known, bench)
    return sum(published)


async def _bring_on_item(
    position: int,
    record: Record | None,
    job: Job,
    known: dict[int, RecordError | None],
    bench: Workbench,
) -> bool:
    """Whether a message was published for the item; otherwise how it ended is noted in `known`."""
    while record is not None:
        key = record.key
        if record.status is Status.SUCCESS or (
            record.status is Status.ERROR and not _worth_another_attempt(record, job)
        ):
            known[position] = record.error
            return False
        if await ask_for(bench.backend, record, job, bench.clock()):
            message = ClassifyImage(key, priority=job.priority, job=job.key.id, position=position)
            await publish(bench.backend.publisher, message)
            return True
        record = await bench.backend.records.get(key)  # somebody moved it
    known[position] = MISSING
    return False


def _worth_another_attempt(record: Record, job: Job) -> bool:
    """Not where the error came while the job ran: then it is the item's own."""
    assert record.error is not None
    before = job.started_at is None or record.updated_at < job.started_at
    return record.may_retry and (before or record.error.code == CANCELLED.code)


def _record_key(item: JobItem, job: Job) -> RecordKey | None:
    return RecordKey(job.key.tenant, item.image_hash, job.model) if item.image_hash else None


async def _all(steps: Iterable[Awaitable[bool]]) -> list[bool]:
    """Their results once all have ended; raises what the first to fail has raised."""
    outcomes = await asyncio.gather(*steps, return_exceptions=True)
    results: list[bool] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results
