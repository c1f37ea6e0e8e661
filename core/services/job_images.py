"""The images that a job asks for, and what becomes of those that only a job asked for."""

from datetime import datetime

from core.backends import Backend
from core.domain import jobs
from core.domain.jobs import Job, JobKey
from core.domain.records import Record, RecordError, wanted
from core.ports import JobStore

# What a record ends with that only a job asked for which is over.
CANCELLED = RecordError(jobs.CANCELLED, "The job that asked for the image is over.", True)


async def is_over(store: JobStore, key: JobKey, now: datetime) -> bool:
    """Whether nothing of the job may begin any more; so it is with one that is deleted."""
    job = await store.get(key)
    return job is None or job.over(now)


async def ask_for(backend: Backend, record: Record, job: Job, now: datetime) -> bool:
    """Note that the job waits for the record, which has not ended well.

    False where the record has changed by that, or meanwhile: look at it again. True where it is
    noted and the job's message can bring it to its end.
    """
    records, priority, id_ = backend.records, job.priority, job.key.id
    if record.status.terminal:
        return await records.retry(record.key, priority, id_)
    if wanted(record, priority, id_) is None:
        return True
    if record.job not in ("", id_):
        over = await is_over(backend.jobs, JobKey(job.key.tenant, record.job), now)
        if over and await records.fail(record.key, CANCELLED, only_for=record.job):
            return False  # nobody else waits for it: it begins anew, as this job's alone
    return await records.want(record.key, priority, id_)
