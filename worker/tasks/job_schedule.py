"""Process jobs that are due: start, cancel, fail, announce or delete them.

Each job stores the time of its next action, so that no action is lost when a process ends. Any
number of workers may run this at the same time: for each job, one of them wins.
"""

from collections import Counter
from dataclasses import replace
from datetime import datetime

import structlog

from core.backends import Backend
from core.domain import jobs
from core.domain.jobs import Action, Job
from core.domain.messages import RunJob
from core.domain.policy import JobPolicy
from core.domain.records import RecordError
from core.observability.tracing import new_trace
from core.services import job_completion
from core.services.publishing import publish
from worker.context import WorkerContext

log = structlog.get_logger(__name__)

MAX_JOBS = 200  # jobs of one run, so that it ends in time


async def process_due_jobs(ctx: WorkerContext, now: datetime) -> dict[str, int]:
    """Process at most `MAX_JOBS` due jobs; how many jobs each action was applied to.

    Raises Unavailable: the remaining jobs stay due until the next run. An action that failed is
    repeated later.
    """
    counts: Counter[str] = Counter()
    store, policy = ctx.backend.jobs, ctx.job_policy
    for due in await store.due(now, MAX_JOBS):
        job = await store.change(due.key, jobs.reschedule(due.wake_at, policy))
        if job is None:
            continue  # another worker processes it, or it changed since the read
        action = jobs.due_action(replace(job, wake_at=due.wake_at), now, policy)
        with new_trace(f"{action.value} job"):
            ended = await _apply(action, job, ctx.backend, policy)
        if ended is not None:
            ctx.metrics.job_ended(ended.status)
        if action is not Action.WAIT:
            counts[action.value] += 1
            log.info(
                "due job processed", action=action.value, job=job.key.id, tenant=job.key.tenant
            )
    return dict(counts)


async def _apply(action: Action, job: Job, backend: Backend, policy: JobPolicy) -> Job | None:
    """Apply the action. Returns the job if this ended it."""
    match action:
        case Action.RUN:
            await publish(backend.publisher, RunJob(job.key.tenant, job.key.id))
        case Action.CANCEL:
            error = RecordError(jobs.DEADLINE_EXCEEDED, "The job's deadline has passed.", True)
            return await job_completion.cancel(backend, job.key, policy, error)
        case Action.EXPIRE:
            detail = f"The job did not finish within {policy.max_duration:g} seconds."
            error = RecordError(jobs.EXPIRED, detail, True)
            return await job_completion.fail(backend, job.key, policy, error)
        case Action.ANNOUNCE:
            await job_completion.announce(backend, job, policy)
        case Action.DELETE:
            await backend.jobs.delete(job.key)
    return None
