"""Concurrent tasks that end with the code that started them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

import structlog

log = structlog.get_logger(__name__)


@asynccontextmanager
async def in_background(*work: Coroutine[object, object, object]) -> AsyncIterator[None]:
    """Run each of `work` as a task for the duration of the context, then cancel and await them.

    An error ends only the task that raises it, and is logged when the context ends.
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


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[R]], limit: int) -> list[R]:
    """The results of `work` for each item, in order. At most `limit` calls run at a time.

    The first error cancels the other calls and is raised as it is, not in an ExceptionGroup.
    """
    semaphore = asyncio.Semaphore(limit)

    async def run(item: T) -> R:
        async with semaphore:
            return await work(item)

    tasks = [asyncio.ensure_future(run(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
