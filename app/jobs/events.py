"""Events about the states of a job."""

from app.streams.events import Event, Kind, encoded
from app.streams.poller import Poller
from core.domain.job_document import job_document
from core.domain.jobs import Job, JobKey, JobStatus

JobPoller = Poller[JobKey, Job, Event]

_KINDS = {
    JobStatus.COMPLETED: Kind.COMPLETE,
    JobStatus.FAILED: Kind.FAILED,
    JobStatus.CANCELLED: Kind.CANCELLED,
}


def job_event(job: Job, public_url: str) -> Event:
    """The event with the state of `job`. Its id is the job's revision."""
    kind = _KINDS.get(job.status, Kind.UPDATE)
    return Event(job.revision, kind, encoded(job_document(job, public_url)))
