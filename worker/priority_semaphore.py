"""A semaphore whose waiters are served by priority."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from core.domain.priority import Priority, service_order


class PrioritySemaphore:
    """Like `asyncio.Semaphore`, but first-in, first-out only within a priority.

    `capacity()` returns the current number of slots, at least 1. When it decreases, tasks that hold
    a slot keep it. When it increases, the next release admits more tasks.
    """

    def __init__(self, capacity: Callable[[], int]) -> None:
        self._capacity = capacity
        self._taken = 0
        self._queues: dict[Priority, deque[asyncio.Future[None]]] = {
            priority: deque() for priority in Priority
        }
        self._turns = 0

    @asynccontextmanager
    async def slot(self, priority: Priority) -> AsyncIterator[None]:
        """Hold a slot for the block."""
        await self._acquire(priority)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, priority: Priority) -> None:
        if not any(self._queues.values()) and self._taken < self._capacity():
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues[priority].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._release()  # the slot was granted in the same iteration of the loop
            raise

    def _release(self) -> None:
        self._taken -= 1
        while self._taken < self._capacity() and self._grant_next():
            self._taken += 1

    def _grant_next(self) -> bool:
        """Grant a slot to the next waiter. Returns False if there is none."""
        self._turns += 1
        for queue in service_order(
            [queue for queue in self._queues.values() if queue], self._turns
        ):
            while queue:
                turn = queue.popleft()
                if not turn.done():  # it is done if its task was cancelled
                    turn.set_result(None)
                    return True
        return False
