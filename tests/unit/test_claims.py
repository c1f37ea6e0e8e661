"""Claims that the worker releases when a delivery fails or is cancelled."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from core.backends import open_backend
from core.domain.records import RecordKey, Status
from core.errors import Unavailable
from tests.support.classifiers import held_classifiers
from tests.support.clock import turns
from tests.support.problems import assert_problem
from tests.support.scripted_worker import until
from tests.support.worker import (
    RunningWorker,
    running_worker,
    settings_in,
)


@pytest.fixture
async def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningWorker]:
    monkeypatch.setattr("worker.tasks.classify_image.DUPLICATE_WAIT_SECONDS", 0.3)
    async with running_worker(settings_in(tmp_path)) as running:
        yield running


async def running(worker: RunningWorker, key: RecordKey) -> bool:
    return (await worker.record(key)).status is Status.RUNNING


async def test_cancelled_delivery_releases_its_claim(worker: RunningWorker) -> None:
    key = await worker.submit()
    with held_classifiers():
        pushing = asyncio.create_task(worker.push(key))
        await until(lambda: running(worker, key))
        pushing.cancel()
        assert_problem(await pushing, 503, "unavailable")
        assert not (await worker.record(key)).leased(worker.context.clock())
    assert (await worker.push(key)).status_code == 204
    assert (await worker.record(key)).status is Status.SUCCESS


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_cancellation_during_the_claim_releases_the_record(
    worker: RunningWorker, moment: str
) -> None:
    """The store grants the claim after the delivery was cancelled."""
    key = await worker.submit()
    claiming, proceed = asyncio.Event(), asyncio.Event()

    async def hold(name: str, after: bool) -> None:
        if name == "records.claim" and after == (moment == "after"):
            claiming.set()
            await proceed.wait()

    with worker.watching(hold):
        pushing = asyncio.create_task(worker.push(key))
        await claiming.wait()
        pushing.cancel()
        await asyncio.sleep(0)
        proceed.set()
        assert_problem(await pushing, 503, "unavailable")
    record = await worker.record(key)
    assert (record.status, record.attempts) == (Status.RUNNING, 1)
    assert not record.leased(worker.context.clock())


async def test_second_cancellation_does_not_interrupt_the_release(
    worker: RunningWorker,
) -> None:
    key = await worker.submit()
    releasing, proceed = asyncio.Event(), asyncio.Event()

    async def hold(name: str, after: bool) -> None:
        if name == "records.release" and not after:
            releasing.set()
            await proceed.wait()

    with worker.watching(hold), held_classifiers():
        pushing = asyncio.create_task(worker.push(key))
        await until(lambda: running(worker, key))
        pushing.cancel()
        await releasing.wait()
        pushing.cancel()
        await asyncio.sleep(0)
        draining = asyncio.create_task(worker.context.claims.wait_until_released())
        await turns()
        assert not draining.done(), "shutdown waits for the release"
        proceed.set()
        assert_problem(await pushing, 503, "unavailable")
        await draining
    assert not (await worker.record(key)).leased(worker.context.clock())


async def test_shutdown_waits_for_the_release_of_claims(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    releasing, proceed = asyncio.Event(), asyncio.Event()

    async def hold(name: str, after: bool) -> None:
        if name == "records.release" and not after:
            releasing.set()
            await proceed.wait()

    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(running_worker(settings))
        key = await worker.submit()
        with worker.watching(hold), held_classifiers():
            pushing = asyncio.create_task(worker.push(key))
            await until(lambda: running(worker, key))
            pushing.cancel()
            await releasing.wait()
        stopping = asyncio.create_task(stack.pop_all().aclose())
        await turns()
        assert not stopping.done()
        proceed.set()
        await stopping
    assert_problem(await pushing, 503, "unavailable")
    async with open_backend(settings) as backend:
        record = await backend.records.get(key)
    assert record is not None and record.error is not None
    assert record.error.code == "worker_stopped"


async def test_failed_release_keeps_the_first_error(worker: RunningWorker) -> None:
    """The next delivery waits until the lease expires."""

    async def fail(name: str, after: bool) -> None:
        if name in ("records.complete", "records.release"):
            raise Unavailable(f"{name} failed.")

    key = await worker.submit()
    with worker.watching(fail):
        answer = await worker.push(key)
    assert assert_problem(answer, 503, "unavailable")["detail"] == "records.complete failed."
    assert (await worker.record(key)).leased(worker.context.clock())
