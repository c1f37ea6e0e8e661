"""Jobs created and changed through the ports, like by the API and the worker."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from core.backends import Backend
from core.clock import utc_now
from core.domain.jobs import Job, JobItem, JobKey, new_job, new_job_id, seal, start
from core.domain.messages import RunJob
from core.domain.priority import Priority
from core.domain.records import PUBLIC_TENANT, RecordError, RecordKey, new_record
from tests.support.pictures import sha256

MODEL = "colours@0123456789ab"
BROKEN = RecordError("undecodable_image", "The image is truncated.", retryable=False)
AT_ONCE = timedelta(0)


async def create_job(
    backend: Backend,
    model: str,
    images: Sequence[bytes],
    now: datetime,
    *,
    priority: Priority = Priority.NORMAL,
    not_before: datetime | None = None,
    deadline: datetime | None = None,
    published: bool = False,
) -> JobKey:
    """Store blobs, missing records, items in the order of `images`, and the sealed job.

    With `published`, also publish the message that starts it.
    """
    key = JobKey(PUBLIC_TENANT, new_job_id())
    for image in images:
        record = RecordKey(key.tenant, sha256(image), model)
        await backend.blobs.put(record.blob_name, image, "image/jpeg")
        await backend.records.create(new_record(record, now, priority, key.id))
    job = new_job(
        key,
        "",
        model,
        len(images),
        now,
        priority=priority,
        not_before=not_before,
        deadline=deadline,
    )
    assert await backend.jobs.create(job)
    items = [JobItem(position, sha256(image)) for position, image in enumerate(images)]
    await backend.jobs.add_items(key, items)
    assert await backend.jobs.change(key, seal()) is not None
    if published:
        await backend.publisher.publish(RunJob(key.tenant, key.id))
    return key


async def running_job(
    backend: Backend, items: int = 4, tenant: str = PUBLIC_TENANT, owner: str = ""
) -> JobKey:
    """A running job with items of images that are not stored."""
    key = JobKey(tenant, new_job_id())
    assert await backend.jobs.create(new_job(key, owner, MODEL, items, utc_now()))
    await backend.jobs.add_items(key, [JobItem(n, f"{n:064x}") for n in range(items)])
    assert await backend.jobs.change(key, seal())
    assert await backend.jobs.change(key, start())
    return key


async def complete_item(
    backend: Backend, key: JobKey, position: int, *, broken: bool = False
) -> None:
    await backend.jobs.complete_item(key, position, BROKEN if broken else None, AT_ONCE)


async def job_of(backend: Backend, key: JobKey) -> Job:
    job = await backend.jobs.get(key)
    assert job is not None
    return job


async def states(backend: Backend, key: JobKey) -> list[str]:
    """The state of each item, in order: `open`, `succeeded`, or its error code."""
    return [
        item.error.code if item.error else item.state.value
        for item in await backend.jobs.items(key, 2000)
    ]
