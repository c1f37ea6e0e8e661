"""Clients that wait for one result share one poll of the store."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from starlette.types import Message

from app.images import result_waiter
from app.images.result_waiter import ResultWaiter
from core.backends import open_backend
from core.clock import utc_now
from core.domain.records import RecordKey, Status, complete, new_record
from core.errors import Unavailable
from core.ports import RecordStore
from tests.support.api import LABELS, api_settings, eventually
from tests.support.clock import turns
from tests.support.records import claimed, delete_image

KEY = RecordKey("public", "a" * 64, "colours@0123456789ab")
LEASE = timedelta(seconds=30)


@pytest.fixture
async def records(tmp_path: Path, colour_bundle: Path) -> AsyncIterator[RecordStore]:
    settings = api_settings(tmp_path, colour_bundle)
    settings.data_dir.mkdir()
    async with open_backend(settings) as backend:
        await backend.records.create(new_record(KEY, utc_now()))
        yield backend.records


async def finish(records: RecordStore) -> None:
    claim = await claimed(records, KEY, LEASE)
    assert claim is not None
    assert await records.change(claim.key, complete(claim, LABELS))


async def polling(waiter: ResultWaiter) -> None:
    async def started() -> bool:
        return waiter.polls > 0

    await eventually(started)


async def test_waiters_share_one_poll_and_get_the_result(records: RecordStore) -> None:
    waiter = ResultWaiter(records)
    waits = [asyncio.create_task(waiter.until_terminal(KEY, 30)) for _ in range(50)]
    await polling(waiter)
    assert waiter.polls == 1
    running = [repr(task.get_coro()) for task in asyncio.all_tasks()]
    assert sum("ResultWaiter.until_terminal" in each for each in running) == 50
    assert sum("ResultWaiter._poll" in each for each in running) == 1
    await finish(records)
    ended = await asyncio.gather(*waits)
    assert {record.status for record in ended if record} == {Status.SUCCESS}
    assert all(ended)
    assert waiter.polls == 0


async def test_timeout_of_one_waiter_does_not_end_the_others(records: RecordStore) -> None:
    waiter = ResultWaiter(records)
    patient = asyncio.create_task(waiter.until_terminal(KEY, 30))
    assert await waiter.until_terminal(KEY, 0.02) is None
    assert waiter.polls == 1
    await finish(records)
    record = await patient
    assert record is not None
    assert record.status is Status.SUCCESS


async def test_disconnect_ends_the_wait(records: RecordStore) -> None:
    waiter = ResultWaiter(records)
    messages = asyncio.Queue[Message]()
    connected = asyncio.create_task(waiter.until_terminal(KEY, 30))
    disconnected = asyncio.create_task(waiter.until_terminal(KEY, 30, messages.get))
    await polling(waiter)
    await messages.put({"type": "http.request", "body": b"", "more_body": False})
    await turns()
    assert not disconnected.done()
    await messages.put({"type": "http.disconnect"})
    async with asyncio.timeout(10):
        assert await disconnected is None
    assert waiter.polls == 1
    await finish(records)
    assert await connected is not None


async def test_poll_ends_with_its_last_waiter(
    records: RecordStore,
) -> None:
    waiter = ResultWaiter(records)
    waits = [asyncio.create_task(waiter.until_terminal(KEY, 30)) for _ in range(2)]
    await polling(waiter)
    waits[0].cancel()
    await turns()
    assert waiter.polls == 1
    assert not waits[1].done()
    waits[1].cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    assert waiter.polls == 0


async def test_deletion_of_the_record_ends_the_wait(records: RecordStore) -> None:
    waiter = ResultWaiter(records)
    wait = asyncio.create_task(waiter.until_terminal(KEY, 30))
    await polling(waiter)
    await delete_image(records, KEY.image)
    assert await wait is None


async def test_stop_ends_all_waits(records: RecordStore) -> None:
    waiter = ResultWaiter(records)
    waits = [asyncio.create_task(waiter.until_terminal(KEY, 3000)) for _ in range(3)]
    await polling(waiter)
    waiter.stop()
    assert await asyncio.gather(*waits) == [None] * 3
    assert await waiter.until_terminal(KEY, 3000) is None


async def test_unavailable_store_is_polled_again(tmp_path: Path, colour_bundle: Path) -> None:
    settings = api_settings(tmp_path, colour_bundle)
    settings.data_dir.mkdir()
    async with open_backend(settings) as backend:
        store = backend.records  # closed, so every call raises Unavailable
    with pytest.raises(Unavailable):
        await store.get(KEY)
    assert await ResultWaiter(store).until_terminal(KEY, 0.1) is None


async def test_waits_of_one_key_are_limited(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_waiter, "MAX_WAITS_PER_KEY", 2)
    waiter = ResultWaiter(records)
    waits = [asyncio.create_task(waiter.until_terminal(KEY, 30, key_id="one")) for _ in range(2)]
    await polling(waiter)
    async with asyncio.timeout(10):
        assert await waiter.until_terminal(KEY, 30, key_id="one") is None
    others = [asyncio.create_task(waiter.until_terminal(KEY, 30, key_id=k)) for k in ("", "other")]
    await asyncio.sleep(0)
    await finish(records)
    assert all(await asyncio.gather(*waits, *others))
    assert not waiter._by_key
