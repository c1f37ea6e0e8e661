"""A bounded number of places, and a line for them in which the most urgent go first."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from core.domain.priority import Priority, in_turn


class PriorityPlaces:
    """As `asyncio.Semaphore`; who has waited longest goes first among equals only.

    `size()` says how many places there are by now, at least one. Where they become fewer, nobody
    is sent away; where they become more, whoever leaves next lets more in.
    """

    def __init__(self, size: Callable[[], int]) -> None:
        self._size = size
        self._taken = 0
        self._lines: dict[Priority, deque[asyncio.Future[None]]] = {
            priority: deque() for priority in Priority
        }
        self._turns = 0

    @asynccontextmanager
    async def at(self, priority: Priority) -> AsyncIterator[None]:
        """Inside, a place is taken."""
        await self._enter(priority)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, priority: Priority) -> None:
        if not any(self._lines.values()) and self._taken < self._size():
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines[priority].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._leave()  # it was handed over in the same moment
            raise

    def _leave(self) -> None:
        self._taken -= 1
        while self._taken < self._size() and self._next():
            self._taken += 1

    def _next(self) -> bool:
        """Let the next one in line in. False where there is none."""
        self._turns += 1
        for line in in_turn([line for line in self._lines.values() if line], self._turns):
            while line:
                turn = line.popleft()
                if not turn.done():  # or it was given up
                    turn.set_result(None)
                    return True
        return False
