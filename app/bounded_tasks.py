"""The same work on many things, a few at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

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
