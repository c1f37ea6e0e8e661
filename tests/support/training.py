"""Training jobs in stores, as the API creates them, and a fit without a process."""

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from datetime import datetime

from core.backends import Backend
from core.clock import Clock
from core.domain import jobs
from core.domain.jobs import JobItem, JobKey, Training
from core.domain.records import blob_name
from tests.support.pictures import picture, sha256
from worker.training.process import fit_stream

RED, GREEN, BLUE = (220, 20, 20), (20, 200, 20), (20, 20, 220)
LABELS = {"warm": RED, "cool": BLUE}


async def fit_in_thread(chunks: AsyncIterator[bytes]) -> bytes:
    """A `worker.training.client.Fit` that starts no process."""
    stream = io.BytesIO(b"".join([chunk async for chunk in chunks]))
    return await asyncio.to_thread(fit_stream, stream)


def pictures(each: int, labels: Mapping[str, tuple[int, int, int]] = LABELS) -> dict[bytes, str]:
    """`each` pictures of every label's colour, and their labels."""
    return {
        picture(1000 * index + seed, rgb, (24, 24)): label
        for index, (label, rgb) in enumerate(labels.items())
        for seed in range(each)
    }


async def stored_training(
    backend: Backend,
    examples: Mapping[bytes, str],
    model: str,
    clock: Clock,
    *,
    name: str = "moods",
    activate: bool = True,
    tenant: str = "public",
    deadline: datetime | None = None,
) -> JobKey:
    """Store the images and a sealed training job with base `model`; no message."""
    key = JobKey(tenant, jobs.new_job_id())
    training = Training(name, activate)
    total = len(examples) + 1
    job = jobs.new_job(key, "", model, total, clock(), training=training, deadline=deadline)
    assert await backend.jobs.create(job)
    items = []
    for position, (data, label) in enumerate(examples.items()):
        await backend.blobs.put(blob_name(tenant, sha256(data)), data, "image/jpeg")
        items.append(JobItem(position, sha256(data), metadata={"label": label}))
    items.append(JobItem(len(examples), "", "fit"))
    await backend.jobs.add_items(key, items)
    await backend.models.add_base(tenant, model)
    assert await backend.jobs.change(key, jobs.seal()) is not None
    return key
