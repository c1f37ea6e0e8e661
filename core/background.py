"""Work that goes on beside other work, and ends with it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

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
