"""Blocking calls in threads: bounded in number and in time."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from google.api_core import exceptions as api

from core.backends.google.blocking_calls import BlockingCalls
from core.errors import NotFound, Unavailable


@pytest.fixture
def seconds() -> float:
    return 60.0


@pytest.fixture
async def calls(seconds: float) -> AsyncIterator[BlockingCalls]:
    calls = BlockingCalls("image storage", 2, seconds)
    yield calls
    await calls.close()


async def test_as_many_calls_run_as_there_are_threads(calls: BlockingCalls) -> None:
    both = threading.Barrier(2)
    async with asyncio.timeout(10):
        await asyncio.gather(calls.run(both.wait), calls.run(both.wait))
    assert await calls.run(lambda: "result") == "result"


@pytest.mark.parametrize("seconds", [0.1])
async def test_the_deadline_includes_the_wait_for_a_thread(calls: BlockingCalls) -> None:
    free = threading.Event()
    started: list[int] = []
    try:
        ended = await asyncio.wait_for(
            asyncio.gather(
                calls.run(free.wait),
                calls.run(free.wait),
                calls.run(lambda: started.append(3)),
                return_exceptions=True,
            ),
            5,
        )
    finally:
        free.set()
    assert [str(each) for each in ended] == ["The image storage does not answer."] * 3
    assert {type(each) for each in ended} == {Unavailable}
    await calls.close()
    assert started == []  # a call that missed its deadline in the queue is not made


async def test_errors_of_google_are_translated(calls: BlockingCalls) -> None:
    def fail() -> None:
        raise api.NotFound("a secret name")

    with pytest.raises(Unavailable, match="image storage"):
        await calls.run(fail)
    with pytest.raises(NotFound, match=r"^There is no such image\.$"):
        await calls.run(fail, missing="There is no such image.")


async def test_close_waits_for_running_calls_and_accepts_no_more(calls: BlockingCalls) -> None:
    begun, free = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        free.wait(10)
        return "done"

    running = asyncio.create_task(calls.run(work))
    await asyncio.to_thread(begun.wait, 10)
    closing = asyncio.create_task(calls.close())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match=r"^The image storage is closed\.$"):
        await calls.run(work)
    assert not closing.done()
    free.set()
    await closing
    assert await running == "done"
