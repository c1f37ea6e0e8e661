"""Clocks that only the test moves."""

import asyncio
from datetime import UTC, datetime, timedelta


class MovableClock:
    """`core.clock.Clock`."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, 9, 30, 0, 123456, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


class LoopClock:
    """The clock of the running event loop, which the test can move ahead of the real time.

    Timers that are due by then run in the next turns of the loop.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._time, self._ahead = loop.time, 0.0
        loop.time = self  # type: ignore[method-assign]  # asyncio has no setter

    def __call__(self) -> float:
        return self._time() + self._ahead

    async def move(self, seconds: float) -> None:
        """Move ahead, and let timers and other tasks run."""
        self._ahead += seconds
        await turns()


async def turns(count: int = 100) -> None:
    """Let other tasks run for `count` turns of the event loop, so that what can happen happens."""
    for _ in range(count):
        await asyncio.sleep(0)
