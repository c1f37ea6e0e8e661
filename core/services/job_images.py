"""Requests images on behalf of a job, and tells whether a job still needs its images."""

from datetime import datetime

from core.backends import Backend
from core.domain import jobs, records
from core.domain.jobs import Job, JobKey
from core.domain.records import Record, RecordError
from core.ports import JobStore

# The error of a record that only a job requested, when that job is over.
CANCELLED = RecordError(jobs.CANCELLED, "The job that requested the image is over.", True)


async def is_over(store: JobStore, key: JobKey, now: datetime) -> bool:
    """Whether no more work of the job may begin. That is also true of a deleted job."""
    job = await store.get(key)
    return job is None or job.over(now)


async def request_image(backend: Backend, record: Record, job: Job, now: datetime) -> bool:
    """Record that the job waits for the record, which is not a success.

    Returns True if that is recorded: the job's message then leads to the record's end. Returns
    False if the record has changed, by this call or another: the caller reads it again.
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
            return False  # only the job that is over waited: the next call retries the record
    return await store.change(key, records.want(priority, id_)) is not None
