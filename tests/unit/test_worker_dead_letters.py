"""Messages that used up their deliveries (P4)."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from core.records import Annotation, RecordKey, Status
from tests.unit.worker_support import UNKNOWN_MODEL, RunningWorker, running_worker, settings_in


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[RunningWorker]:
    async with running_worker(settings_in(tmp_path)) as running:
        yield running


@pytest.mark.parametrize(
    ("deliveries", "told"),
    [("7", "after 7 deliveries"), ("", "its deliveries"), ("<b>", "its deliveries")],
)
async def test_the_record_ends_as_a_retryable_error(
    worker: RunningWorker, deliveries: str, told: str
) -> None:
    key = await worker.submit()
    assert (await worker.bury(key, deliveries)).status_code == 204
    record = await worker.record(key)
    assert record.status is Status.ERROR
    assert record.error is not None
    assert record.error.code == "delivery_exhausted"
    assert record.error.retryable
    assert told in record.error.detail


async def test_a_model_that_nobody_has_is_named(worker: RunningWorker) -> None:
    key = await worker.submit(model=UNKNOWN_MODEL)
    assert (await worker.bury(key)).status_code == 204
    error = (await worker.record(key)).error
    assert error is not None
    assert (error.code, error.retryable) == ("model_unavailable", True)
    assert UNKNOWN_MODEL in error.detail


async def test_a_result_is_never_overwritten(worker: RunningWorker) -> None:
    key = await worker.submit()
    await worker.push(key)
    before = await worker.record(key)
    assert (await worker.bury(key)).status_code == 204
    assert await worker.record(key) == before


async def test_an_owned_record_is_left_to_its_owner(worker: RunningWorker) -> None:
    key = await worker.submit()
    claim = await worker.backend.records.claim(key, timedelta(minutes=1))
    assert claim is not None
    answer = await worker.bury(key)
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert await worker.backend.records.complete(claim, [Annotation(1, "red", 1.0)])
    assert (await worker.bury(key)).status_code == 204
    assert (await worker.record(key)).status is Status.SUCCESS


async def test_a_dead_owner_does_not_save_the_record(worker: RunningWorker) -> None:
    key = await worker.submit()
    await worker.backend.records.claim(key, timedelta(microseconds=1))
    assert (await worker.bury(key)).status_code == 204
    assert (await worker.record(key)).status is Status.ERROR


async def test_a_letter_about_nothing_is_acknowledged(worker: RunningWorker) -> None:
    key = RecordKey("public", "cd" * 32, worker.model)
    assert (await worker.bury(key)).status_code == 204
    assert await worker.backend.records.get(key) is None


async def test_a_replayed_letter_mends_the_record(worker: RunningWorker) -> None:
    key = await worker.submit()
    await worker.bury(key)
    assert await worker.backend.records.retry(key)
    assert (await worker.push(key)).status_code == 204
    assert (await worker.record(key)).status is Status.SUCCESS
