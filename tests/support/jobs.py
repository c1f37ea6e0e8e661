"""A job as the API makes one, straight through the ports, and what became of it."""

from collections.abc import Sequence
from datetime import datetime

from core.backends import Backend
from core.jobs import Job, JobItem, JobKey, new_job, new_job_id, sealed
from core.messages import RunJob
from core.priority import Priority
from core.records import RecordKey, new_record
from tests.support.pictures import sha256


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
    """Blobs, records that are not there yet, items in the order of `images`, and the sealed job.

    With `published` also the message that starts it.
    """
    key = JobKey("public", new_job_id())
    places: dict[str, list[int]] = {}
    for position, image in enumerate(images):
        places.setdefault(sha256(image), []).append(position)
    for image_hash, positions in places.items():
        record = RecordKey(key.tenant, image_hash, model)
        await backend.blobs.put(record.blob_name, images[positions[0]], "image/jpeg")
        await backend.records.create(new_record(record, now, priority, key.id))
    job = new_job(
        key, "", model, len(images), now, priority=priority, not_before=not_before,
        deadline=deadline,
    )  # fmt: skip
    assert await backend.jobs.create(job)
    items = []
    for image_hash, (first, *others) in places.items():
        items.append(JobItem(first, image_hash, twins=tuple(others)))
        items += [JobItem(other, image_hash, twin_of=first) for other in others]
    await backend.jobs.add_items(key, items)
    assert await backend.jobs.change(key, sealed) is not None
    if published:
        await backend.publisher.publish(RunJob(key.tenant, key.id))
    return key


async def job_of(backend: Backend, key: JobKey) -> Job:
    job = await backend.jobs.get(key)
    assert job is not None
    return job


async def states(backend: Backend, key: JobKey) -> list[str]:
    """Of each item, in order: `open`, `succeeded`, or the code of its error."""
    return [
        item.error.code if item.error else item.state.value
        for item in await backend.jobs.items(key, 2000)
    ]
