"""Jobs in a real store, moved as the worker moves them."""

from datetime import timedelta

from core import jobs
from core.backends import Backend
from core.clock import utc_now
from core.jobs import Job, JobItem, JobKey, new_job, new_job_id
from core.records import PUBLIC_TENANT, RecordError

MODEL = "colours@0123456789ab"
BROKEN = RecordError("undecodable_image", "The image is truncated.", retryable=False)
AT_ONCE = timedelta(0)


async def running_job(
    backend: Backend, items: int = 4, tenant: str = PUBLIC_TENANT, owner: str = ""
) -> JobKey:
    """A job whose items wait for their images."""
    key = JobKey(tenant, new_job_id())
    assert await backend.jobs.create(new_job(key, owner, MODEL, items, utc_now()))
    await backend.jobs.add_items(key, [JobItem(n, f"{n:064x}") for n in range(items)])
    assert await backend.jobs.change(key, jobs.sealed)
    assert await backend.jobs.change(key, jobs.started)
    return key


async def settle(backend: Backend, key: JobKey, position: int, *, broken: bool = False) -> None:
    await backend.jobs.settle(key, position, BROKEN if broken else None, AT_ONCE)


async def job_of(backend: Backend, key: JobKey) -> Job:
    job = await backend.jobs.get(key)
    assert job is not None
    return job
