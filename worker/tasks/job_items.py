"""Ending one item of a job and, with the last one, the job."""

from collections.abc import Mapping

import structlog

from core.domain.jobs import Job, JobKey, JobStatus
from core.domain.records import RecordError
from core.services.job_completion import announce
from worker.context import Workbench

log = structlog.get_logger(__name__)


async def settle(job: JobKey, position: int, error: RecordError | None, bench: Workbench) -> None:
    """End the item and its twins: with `error`, or well. Raises Unavailable.

    Settling again changes nothing.
    """
    after = await bench.backend.jobs.settle(job, position, error, bench.refresh_interval)
    bench.metrics.item_ended(error)
    await close(after, bench)


async def settle_many(
    job: JobKey, outcomes: Mapping[int, RecordError | None], bench: Workbench
) -> None:
    """As `settle` for each of these items. Counting them is left to whoever has settled the last.

    So it does not end the job.
    """
    if outcomes:
        await bench.backend.jobs.settle_many(job, outcomes)
        for error in outcomes.values():
            bench.metrics.item_ended(error)


async def close(counted: Job | None, bench: Workbench) -> None:
    """Announce the end of a job that a count has just completed; `counted` is as counts return it.

    Only a count completes a job, and none changes a completed one: this is said of a job once.
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
    bench.metrics.job_ended(counted.status)
    await announce(bench.backend, counted, bench.jobs)
