"""Complete an item of a job and, with the last item, the job."""

from collections.abc import Mapping
from datetime import timedelta

import structlog

from core.domain.jobs import Job, JobKey, JobStatus
from core.domain.records import RecordError
from core.services.job_completion import announce
from worker.context import WorkerContext

log = structlog.get_logger(__name__)


async def complete_item(
    job: JobKey, position: int, error: RecordError | None, ctx: WorkerContext
) -> None:
    """End the item, with `error` or successfully. Raises Unavailable.

    A repetition changes nothing.
    """
    interval = timedelta(seconds=ctx.job_policy.refresh_interval)
    counted = await ctx.backend.jobs.complete_item(job, position, error, interval)
    ctx.metrics.item_ended(error)
    await announce_completion(counted, ctx)


async def complete_items(
    job: JobKey, outcomes: Mapping[int, RecordError | None], ctx: WorkerContext
) -> None:
    """Like `complete_item`, by position, but without counting, so that the job does not end."""
    if outcomes:
        await ctx.backend.jobs.complete_items(job, outcomes)
        for error in outcomes.values():
            ctx.metrics.item_ended(error)


async def announce_completion(counted: Job | None, ctx: WorkerContext) -> None:
    """Announce the end of a job that a count has completed; `counted` is the count's result.

    Only a count completes a job, and no count changes a completed job. Therefore this happens once
    for each job.
    """
    if counted is None or counted.status is not JobStatus.COMPLETED:
        return
    counts = counted.counts
    log.info(
        "job completed",
        job=counted.key.id,
        tenant=counted.key.tenant,
        succeeded=counts.succeeded,
        failed=counts.failed,
    )
    ctx.metrics.job_ended(counted.status)
    await announce(ctx.backend, counted, ctx.job_policy)
