"""Jobs on a running worker."""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from core.clock import Clock
from core.domain import channels
from core.domain.jobs import Job, JobKey
from core.domain.messages import Message
from core.domain.policy import JobPolicy
from core.domain.records import Annotation, RecordError, RecordKey, complete, fail
from core.services.job_completion import cancel
from core.settings import Settings
from tests.support.jobs import create_job
from tests.support.pictures import picture, sha256
from tests.support.records import claimed
from tests.support.worker import RunningWorker, running_worker, settings_in

LEASE = timedelta(seconds=30)
_seeds = itertools.count(10_000)


@asynccontextmanager
async def running_job_worker(
    folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunningWorker]:
    """A worker that counts a job's items after each one, and waits briefly for other workers."""
    monkeypatch.setattr("worker.tasks.classify_image.DUPLICATE_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(Settings, "jobs", property(lambda self: JobPolicy(refresh_interval=0)))
    async with running_worker(settings_in(folder, worker_concurrency=1), clock) as running:
        yield running


def pictures(count: int) -> list[bytes]:
    """Images that no other test uses."""
    return [picture(next(_seeds), size=(16, 16)) for _ in range(count)]


async def submit_job(worker: RunningWorker, images: Sequence[bytes], **options: object) -> JobKey:
    """Create a job with its images, as the API does; `options` are those of `create_job`."""
    now = worker.context.clock()
    return await create_job(worker.backend, worker.model, images, now, **options)  # type: ignore[arg-type]


def key_of(worker: RunningWorker, image: bytes) -> RecordKey:
    return RecordKey("public", sha256(image), worker.model)


async def cancel_job(worker: RunningWorker, key: JobKey) -> Job:
    job = await cancel(worker.backend, key, worker.context.job_policy)
    assert job is not None
    return job


async def finished_record(
    worker: RunningWorker, image: bytes, error: RecordError | None
) -> RecordKey:
    """Submit an image whose record ends at once: with `error`, or successfully."""
    key = await worker.submit(image)
    claim = await claimed(worker.backend.records, key, LEASE)
    assert claim is not None
    end = fail(claim, error) if error else complete(claim, [Annotation(1, "by hand", 1.0)])
    assert await worker.backend.records.change(claim.key, end)
    return key


async def deliver(worker: RunningWorker, *messages: Message) -> None:
    """Deliver messages that the worker must acknowledge."""
    for message in messages:
        answer = await worker.send(message)
        assert answer.status_code == 204, answer.text


def notifications(worker: RunningWorker) -> list[Message]:
    """The published notifications."""
    return worker.published(channels.NOTIFICATIONS)
