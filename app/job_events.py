"""A job's states as events."""

from app.live_events import Event, Kind, encoded
from app.watching import Watcher
from core.job_document import job_document
from core.jobs import Job, JobKey, JobStatus

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
