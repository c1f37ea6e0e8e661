"""A job's states as events."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from app.live_events import Event, Kind, encoded
from app.watching import Watcher
from core.job_document import job_document
from core.jobs import Job, JobKey, JobStatus
from core.ports import JobStore

JobWatcher = Watcher[JobKey, Job, Event]

_KINDS = {
    JobStatus.COMPLETED: Kind.COMPLETE,
    JobStatus.FAILED: Kind.ERROR,
    JobStatus.CANCELLED: Kind.ERROR,
}


def job_event(job: Job, public_url: str) -> Event:
    """The event that tells of `job`. Its id is the job's revision."""
    kind = _KINDS.get(job.status, Kind.UPDATE)
    return Event(job.revision, kind, encoded(job_document(job, public_url)))


def sealed_jobs(
    store: JobStore,
) -> Callable[[Sequence[JobKey]], Awaitable[Mapping[JobKey, Job]]]:
    """A look-up of those jobs that anybody is shown."""

    async def look_up(keys: Sequence[JobKey]) -> Mapping[JobKey, Job]:
        found = await store.get_many(keys)
        return {key: job for key, job in found.items() if job.sealed}

    return look_up
