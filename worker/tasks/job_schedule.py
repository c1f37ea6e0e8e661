"""Jobs whose time has come: begun, cancelled, told about, deleted.

Everything that is to happen at a time stands in the jobs themselves, so nothing is forgotten when a
process ends, and any number of these may run at once: of several, one wins each turn.
"""

from collections import Counter
from dataclasses import replace
from datetime import datetime

import structlog

from core.domain import jobs
from core.domain.jobs import Action, Job
from core.domain.messages import RunJob
from core.domain.policy import JobPolicy
from core.domain.records import RecordError
from core.observability.tracing import NO_TRACER, Inside, Kind, Tracer
from core.ports import JobStep
from core.services import job_completion
from core.services.publishing import publish
from worker.context import Workbench

log = structlog.get_logger(__name__)

JOBS = 200  # most that one run looks after, so that it ends in time


async def look_after_jobs(
    bench: Workbench, now: datetime, limit: int = JOBS, tracer: Tracer = NO_TRACER
) -> dict[str, int]:
    """Do what is due of at most `limit` jobs; how many were begun, cancelled and so on.

    Raises Unavailable, after which the rest are still due and wait for the next run. What has come
    to nothing has its turn again.
    """
    counts: Counter[str] = Counter()
    store = bench.backend.jobs
    for job in await store.due(now, limit):
        mine = await store.change(job.key, _turn(job.wake_at, bench.jobs))
        if mine is None:
            continue  # another took it, or the job has moved on
        seen = replace(mine, wake_at=job.wake_at)
        action = jobs.due_action(seen, now, bench.jobs)
        with Inside(tracer.begin(f"{action.value} job", Kind.INTERNAL, "")):
            await _act(action, mine, bench)
        if action is not Action.WAIT:
            counts[action.value] += 1
            log.info("job looked after", action=action.value, job=job.key.id, tenant=job.key.tenant)
    return dict(counts)


def _turn(seen: datetime, policy: JobPolicy) -> JobStep:
    return lambda job, now: jobs.looked_after(job, seen, now, policy)


async def _act(action: Action, job: Job, bench: Workbench) -> None:
    backend, policy = bench.backend, bench.jobs
    ended: Job | None = None
    match action:
        case Action.RUN:
            await publish(backend.publisher, RunJob(job.key.tenant, job.key.id))
        case Action.CANCEL:
            error = RecordError(jobs.DEADLINE_EXCEEDED, "The job's deadline is past.", True)
            ended = await job_completion.cancel(backend, job.key, policy, error)
        case Action.EXPIRE:
            detail = f"The job was not done within {policy.longest:g} seconds."
            error = RecordError(jobs.EXPIRED, detail, True)
            ended = await job_completion.fail(backend, job.key, policy, error)
        case Action.ANNOUNCE:
            await job_completion.announce(backend, job, policy)
        case Action.DELETE:
            await backend.jobs.delete(job.key)
    if ended is not None:
        bench.metrics.job_ended(ended.status)
