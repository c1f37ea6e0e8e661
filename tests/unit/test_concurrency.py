"""Background tasks and bounded concurrency: tasks end with their context, and errors are seen."""

import asyncio

import pytest
from structlog.testing import capture_logs

from core.concurrency import for_each, in_background
from tests.support.clock import turns


async def test_background_work_runs_until_the_context_ends() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    with capture_logs() as lines:
        async with in_background(work(), work()):
            await began.wait()
            assert not ended.is_set()
        assert ended.is_set()
    assert lines == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_failing_work_ends_alone_and_is_logged() -> None:
    done = asyncio.Event()

    async def fail() -> None:
        raise LookupError("gone")

    async def work() -> None:
        await turns()
        done.set()

    with capture_logs() as lines:
        async with in_background(fail(), work()):
            await done.wait()
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("background work failed", "error")
    assert isinstance(line["exc_info"], LookupError)


async def test_an_error_inside_the_context_is_raised() -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    with pytest.raises(LookupError, match="mine"):
        async with in_background(work()):
            raise LookupError("mine")
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_for_each_returns_results_in_order_and_limits_concurrency() -> None:
    running: set[int] = set()
    most = 0

    async def work(number: int) -> int:
        nonlocal most
        running.add(number)
        most = max(most, len(running))
        for _ in range(10 - number):  # later items end earlier
            await asyncio.sleep(0)
        running.discard(number)
        return number * number

    assert await for_each(range(10), work, 3) == [number * number for number in range(10)]
    assert most == 3
    assert await for_each([], work, 3) == []


async def test_the_first_error_of_for_each_cancels_and_awaits_the_others() -> None:
    ended: list[str] = []

    async def work(number: int) -> None:
        if number == 1:
            raise LookupError("of one item")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("cancelled")

    with pytest.raises(LookupError, match="of one item"):
        await for_each(range(3), work, 3)
    assert ended == ["cancelled"] * 2
    assert asyncio.all_tasks() == {asyncio.current_task()}
