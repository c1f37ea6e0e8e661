"""Work that goes on beside other work, and ends with it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

import structlog

log = structlog.get_logger(__name__)


@asynccontextmanager
async def in_background(*work: Coroutine[object, object, object]) -> AsyncIterator[None]:
    """Run each of `work` as a task; at the end cancel what still runs and wait for it.

    What one raises ends it alone, and is logged at the end.
    """
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.error("background work failed", exc_info=outcome)


T = TypeVar("T")
R = TypeVar("R")


async def for_each(things: Iterable[T], work: Callable[[T], Awaitable[R]], at_once: int) -> list[R]:
    """The results, in order. What one raises ends the others and is raised, bare."""
    room = asyncio.Semaphore(at_once)

    async def one(thing: T) -> R:
        async with room:
            return await work(thing)

    tasks = [asyncio.ensure_future(one(thing)) for thing in things]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
