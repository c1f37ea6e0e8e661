"""The images that a job asks for, and what becomes of those that only a job asked for."""

from datetime import datetime

from core.backends import Backend
from core.domain import jobs, records
from core.domain.jobs import Job, JobKey
from core.domain.records import Record, RecordError
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
    store, key, priority, id_ = backend.records, record.key, job.priority, job.key.id
    if record.status.terminal:
        return await store.change(key, records.retry(priority, id_)) is not None
    if record.serves(priority, id_):
        return True
    if record.job not in ("", id_):
        over = await is_over(backend.jobs, JobKey(job.key.tenant, record.job), now)
        cancel = records.fail_unleased(CANCELLED, only_for=record.job)
        if over and await store.change(key, cancel) is not None:
            return False  # nobody else waits for it: it begins anew, as this job's alone
    return await store.change(key, records.want(priority, id_)) is not None
