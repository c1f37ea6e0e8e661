"""Hours of refused deliveries in simulated time: nothing is lost, and no image ends as `error`.

The queue and the worker run in this process. The test is the clock: it moves to the moment at which
the next message is due.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from structlog.testing import capture_logs

from core.backends.embedded import open_queue_store
from core.backends.embedded.queue import PushQueue, lane_sizes
from core.backends.embedded.queue_store import QueueStore
from core.backends.push_client import PushClient
from core.domain.messages import ClassifyImage
from core.domain.records import GAVE_UP, RecordKey, Status
from core.errors import Unavailable
from core.settings import Settings
from tests.support.clock import MovableClock
from tests.support.pictures import picture
from tests.support.worker import RunningWorker, push_headers, running_worker, settings_in
from worker.errors import InferenceFailed
from worker.tasks.classify_image import MAX_CLAIMS

IMAGES = 3
OUTAGE = timedelta(hours=12)
DAY = timedelta(days=1)


class Outage:
    """Delivers pushes to the worker in this process, or refuses them with `status`."""

    def __init__(self, worker: RunningWorker) -> None:
        self._worker = worker
        self.status = 0
        self.deliveries = 0

    async def post(self, path: str, body: bytes, seconds: float) -> int:
        self.deliveries += 1
        if self.status:
            return self.status
        transport = httpx.ASGITransport(self._worker.app, raise_app_exceptions=False)
        settings = self._worker.context.settings
        async with httpx.AsyncClient(
            transport=transport, base_url=settings.worker_url, headers=push_headers(settings)
        ) as client:
            return (await client.post(path, content=body)).status_code


class Simulation:
    def __init__(self, worker: RunningWorker, store: QueueStore, clock: MovableClock) -> None:
        self.worker, self.store, self.clock = worker, store, clock
        self.client = Outage(worker)
        self.keys: list[RecordKey] = []

    async def store_images(self, images: int) -> None:
        """Store images, without a message."""
        self.keys = [await self.worker.submit(picture(number)) for number in range(images)]

    async def publish(self) -> None:
        for key in self.keys:
            await self.worker.backend.publisher.publish(ClassifyImage(key))

    async def run(self, duration: timedelta, *, reconciling: bool = False) -> None:
        """Let the queue deliver, and move the clock, until no message is left or time is over.

        With `reconciling`, the reconciler runs as often as the scheduler calls it.
        """
        until = self.clock() + duration
        interval = timedelta(seconds=self.worker.context.settings.delivery.reconcile_interval)
        next_run = self.clock() + interval
        while self.clock() < until and await self._messages():
            due = await self._next_due()
            if due is not None and due > self.clock():
                self.clock.now = min(due, until, next_run if reconciling else until)
            if reconciling and self.clock() >= next_run:
                await self.worker.reconcile()
                next_run = self.clock() + interval
            await asyncio.sleep(0.005)

    async def _messages(self) -> int:
        count: int = await self.store._database.read(
            lambda connection: connection.execute("SELECT count(*) FROM messages").fetchone()[0]
        )
        return count

    async def _next_due(self) -> datetime | None:
        """When the next message is due; None while one is in flight."""
        leased = await self.store._database.read(
            lambda connection: connection.execute(
                "SELECT 1 FROM messages WHERE leased = 1"
            ).fetchone()
        )
        _, due = await self.store.due_times(-1)
        return min(due.values()) if due and leased is None else None

    async def statuses(self) -> set[Status]:
        return {(await self.worker.record(key)).status for key in self.keys}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path, log_level="error")


@pytest.fixture
async def simulation(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Simulation]:
    monkeypatch.setattr("worker.tasks.classify_image.DUPLICATE_WAIT_SECONDS", 0.01)
    clock = MovableClock()
    async with (
        running_worker(settings, clock) as worker,
        open_queue_store(settings) as store,
    ):
        made = Simulation(worker, store, clock)
        client = cast(PushClient, made.client)
        queue = PushQueue(store, client, settings.channel_delivery, lane_sizes(4), clock)
        running = asyncio.create_task(queue.run(5))
        try:
            yield made
        finally:
            queue.stop()
            await running


Broken = Callable[[Simulation], AbstractContextManager[None]]


@contextmanager
def saturated(simulation: Simulation) -> Any:
    """Cloud Run answers itself, because the service is at `max_instances`."""
    simulation.client.status = 429
    yield
    simulation.client.status = 0


@contextmanager
def no_records(simulation: Simulation) -> Any:
    async def fail(name: str, after: bool) -> None:
        if name.startswith("records."):
            raise Unavailable("The record store does not answer.")

    with simulation.worker.watching(fail):
        yield


@contextmanager
def no_blobs(simulation: Simulation) -> Any:
    """The worker claims each record and cannot read the image."""
    blobs = simulation.worker.context.settings.data_dir / "blobs"
    aside = blobs.rename(blobs.with_name("aside"))
    blobs.write_bytes(b"no folder")
    yield
    blobs.unlink()
    aside.rename(blobs)


@contextmanager
def no_results(simulation: Simulation) -> Any:
    """The worker classifies each image and cannot store the result."""

    async def fail(name: str, after: bool) -> None:
        if name == "records.complete":
            raise Unavailable("The record store does not answer.")

    with simulation.worker.watching(fail):
        yield


@pytest.mark.parametrize("broken", [saturated, no_records, no_blobs, no_results])
async def test_hours_of_refusals_lose_nothing(simulation: Simulation, broken: Broken) -> None:
    """P4: after the trouble, every image succeeds, and there is no dead letter."""
    await simulation.store_images(IMAGES)
    with broken(simulation):
        await simulation.publish()
        await simulation.run(OUTAGE)
        assert simulation.client.deliveries > 50 * IMAGES
        assert not any(status.terminal for status in await simulation.statuses())
    await simulation.run(DAY)
    assert await simulation.statuses() == {Status.SUCCESS}
    assert await simulation.worker.letters() == []


async def test_hours_of_saturation_pile_up_no_messages(simulation: Simulation) -> None:
    """P4: the reconciler publishes a waiting record again and again, but ever less often."""
    delivery = simulation.worker.context.settings.delivery
    await simulation.store_images(1)
    with saturated(simulation):
        await simulation.publish()
        await simulation.run(OUTAGE, reconciling=True)
        waiting = len(simulation.worker.published())
    doublings = math.log2(OUTAGE.total_seconds() / delivery.stale_after)
    assert 1 < waiting <= 2 + doublings
    await simulation.run(DAY, reconciling=True)
    assert await simulation.statuses() == {Status.SUCCESS}
    assert await simulation.worker.letters() == []


@asynccontextmanager
async def _poisoned(
    worker: RunningWorker, poison: RecordKey, error: Exception
) -> AsyncIterator[None]:
    classifier = await worker.context.models.classifier(worker.model)
    classify = type(classifier).classify

    async def fail(self: Any, image: Path, steps: Any) -> Any:
        if image.name == poison.image_hash:
            raise error
        return await classify(self, image, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(classifier), "classify", fail)
        yield


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InferenceFailed("No scores."), "inference_failed"),
        (RuntimeError("a bug"), "internal_error"),
    ],
    ids=["inference", "bug"],
)
async def test_poisonous_image_is_bounded_by_claims(
    simulation: Simulation, error: Exception, code: str
) -> None:
    """It ends as a retryable error that says why, and its message is acknowledged."""
    await simulation.store_images(IMAGES)
    poison = simulation.keys[0]
    # Captured, because a readable traceback for each failure would take most of the time.
    with capture_logs():
        async with _poisoned(simulation.worker, poison, error):
            await simulation.publish()
            await simulation.run(DAY)
    record = await simulation.worker.record(poison)
    assert (record.status, record.attempts) == (Status.ERROR, MAX_CLAIMS + 1)
    assert record.error is not None
    assert (record.error.code, record.error.retryable) == (GAVE_UP, True)
    assert f"{MAX_CLAIMS} attempts" in record.error.detail
    assert code in record.error.detail
    simulation.keys.remove(poison)
    assert await simulation.statuses() == {Status.SUCCESS}
    assert await simulation.worker.letters() == []


async def test_image_that_ends_its_worker_is_bounded_by_claims(simulation: Simulation) -> None:
    """A worker that is killed releases nothing: the claim counts when its lease expires."""
    worker = simulation.worker
    await simulation.store_images(1)

    async def die(name: str, after: bool) -> None:
        if name in ("records.complete", "records.release"):
            raise Unavailable("The worker was killed.")

    with worker.watching(die):
        await simulation.publish()
        await simulation.run(DAY)
    record = await worker.record(simulation.keys[0])
    assert record.error is not None
    assert record.error.code == GAVE_UP
