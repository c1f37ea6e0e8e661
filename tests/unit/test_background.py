"""Work beside other work: it ends with it, and nothing that goes wrong in it is hidden."""

import asyncio

import pytest
from structlog.testing import capture_logs

from core.concurrency import in_background


async def test_work_goes_on_until_the_end_and_no_longer() -> None:
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


async def test_work_that_fails_ends_alone_and_is_reported() -> None:
    done = asyncio.Event()

    async def fail() -> None:
        raise LookupError("gone")

    async def work() -> None:
        await asyncio.sleep(0.01)
        done.set()

    with capture_logs() as lines:
        async with in_background(fail(), work()):
            await done.wait()
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("background work failed", "error")
    assert isinstance(line["exc_info"], LookupError)


async def test_a_failure_inside_is_the_callers() -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    with pytest.raises(LookupError, match="mine"):
        async with in_background(work()):
            raise LookupError("mine")
    assert asyncio.all_tasks() == {asyncio.current_task()}
