"""The end of a job, and word of it: one message that whoever wants to hear of it is told from.

Whoever moves a job to its end announces that, at once. Where a crash or a fault comes between, the
scheduler does; so word is given at least once.
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
    """Cancel the job: nothing of it begins any more. `error` says why, if not by wish.

    The job after it, or None where it has ended or there is none. Raises Unavailable.
    """
    return await _end(backend, key, jobs.cancel(error, policy), policy)


async def fail(backend: Backend, key: JobKey, policy: JobPolicy, error: RecordError) -> Job | None:
    """Give the job up, as one that cannot be run. Otherwise as `cancel`."""
    return await _end(backend, key, jobs.fail(error, policy), policy)


async def announce(backend: Backend, job: Job, policy: JobPolicy) -> bool:
    """Give word of the job's end; False where that is left to the scheduler.

    Before it, what had ended by then is counted: the last count may lack some of that.
    """
    try:
        if job.counts.open:
            await backend.jobs.refresh_counts(job.key)
        await publish(
            backend.publisher, Notify(job.key.tenant, job.key.id, f"job.{job.status.value}")
        )
        await backend.jobs.change(job.key, jobs.mark_announced(policy))
    except Unavailable as unavailable:
        # The job has ended all the same, and no repetition by the caller would find it ending.
        log.warning("job's end not announced yet", job=job.key.id, reason=unavailable.detail)
        return False
    return True


async def _end(
    backend: Backend, key: JobKey, end: Transition[Job], policy: JobPolicy
) -> Job | None:
    job = await backend.jobs.change(key, end)
    if job is not None:
        log.info("job ended", job=key.id, tenant=key.tenant, status=job.status.value)
        await announce(backend, job, policy)
    return job
