"""Google's blocking clients for an event loop: a bounded pool of threads, and a deadline a call."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from core.backends.google.errors import translated
from core.errors import Unavailable

T = TypeVar("T")


class BlockingCalls:
    """Runs blocking calls to `part` in `threads` threads, each call within `seconds`.

    `part` names the service in error details. The deadline includes the wait for a free thread. A
    call that misses it keeps its thread until it ends by the timeouts of its own requests.
    """

    def __init__(self, part: str, threads: int, seconds: float) -> None:
        self._part = part
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=part.replace(" ", "-"))
        self._closed = False

    async def run(self, work: Callable[[], T], *, missing: str = "") -> T:
        """Return what `work` returns. Raises Unavailable, and NotFound as `translated` does."""
        if self._closed:
            raise Unavailable(f"The {self._part} is closed.")
        loop = asyncio.get_running_loop()
        with translated(self._part, missing=missing):
            async with asyncio.timeout(self._seconds):
                return await loop.run_in_executor(self._threads, work)

    async def close(self) -> None:
        """Accept no more calls, and return when those that run have ended."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
