"""uvicorn for both services: an idle process sleeps."""

import asyncio
from contextlib import suppress

import uvicorn

from core.gc_pause import end_gc_pause

TICK_SECONDS = 1.0  # uvicorn updates the Date header at this interval
_TICKS_OF_UVICORN = 10  # in this interval


class BaseServer(uvicorn.Server):
    """Wakes once a second, and at once when it should exit. uvicorn itself polls every 100 ms.

    uvicorn has no option for that interval, so this replaces `main_loop`, and `should_exit`, which
    a program may set to stop a server.
    """

    _should_exit = False
    _loop: asyncio.AbstractEventLoop | None = None
    _woken: asyncio.Event

    @property
    def should_exit(self) -> bool:
        return self._should_exit

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        """May be called in any thread and by a signal handler."""
        self._should_exit = value
        if value and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._woken.set)

    async def main_loop(self) -> None:
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        end_gc_pause()  # what the application has created at its start stays, too
        ticks = 0
        while not await self.on_tick(ticks):
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._woken.wait()
            ticks += _TICKS_OF_UVICORN
