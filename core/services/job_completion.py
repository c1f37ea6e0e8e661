"""Ends jobs, and announces each end by one message, from which all notifications are sent.

The process that ends a job announces it at once. If a crash or an error prevents that, the
scheduler does it, so each end is announced at least once.
"""

import structlog

from core.backends import Backend
from core.domain import jobs
from core.domain.jobs import Job, JobKey
from core.domain.messages import Notify
from core.domain.policy import JobPolicy
from core.domain.records import RecordError
from core.domain.transitions import Transition
from core.errors import Unavailable
from core.services.publishing import publish

log = structlog.get_logger(__name__)


async def cancel(
    backend: Backend, key: JobKey, policy: JobPolicy, error: RecordError | None = None
) -> Job | None:
    """Cancel the job, so that no more of its work begins. Return the cancelled job.

    Returns None if the job has ended or does not exist. `error` is the reason, unless a client
    cancels. Raises Unavailable.
    """
    return await _end(backend, key, jobs.cancel(error, policy), policy)


async def fail(backend: Backend, key: JobKey, policy: JobPolicy, error: RecordError) -> Job | None:
    """End the job as failed, because it cannot run. Otherwise the same as `cancel`."""
    return await _end(backend, key, jobs.fail(error, policy), policy)


async def announce(backend: Backend, job: Job, policy: JobPolicy) -> None:
    """Announce the end of the job. If a store does not answer, the scheduler does it later.

    The counts are refreshed first: the last ones may lack items that ended since.
    """
    try:
        if job.counts.open:
            await backend.jobs.refresh_counts(job.key)
        await publish(
            backend.publisher, Notify(job.key.tenant, job.key.id, f"job.{job.status.value}")
        )
        await backend.jobs.change(job.key, jobs.mark_announced(policy))
    except Unavailable as unavailable:
        # The job has ended nevertheless, so a retry by the caller would not announce it.
        log.warning("job's end not announced yet", job=job.key.id, reason=unavailable.detail)


async def _end(
    backend: Backend, key: JobKey, end: Transition[Job], policy: JobPolicy
) -> Job | None:
    job = await backend.jobs.change(key, end)
    if job is not None:
        log.info("job ended", job=key.id, tenant=key.tenant, status=job.status.value)
        await announce(backend, job, policy)
    return job
