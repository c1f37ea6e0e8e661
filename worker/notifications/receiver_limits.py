"""Limits deliveries for each receiver, so that a slow receiver does not delay the others.

A delivery that finds no free slot is refused soon, and the queue delivers its message again. A
receiver whose last delivery failed gets one delivery at a time.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cachetools import LRUCache

from core.errors import Overloaded, Unavailable

SLOTS_PER_RECEIVER = 4
WAIT_SECONDS = 5.0
MAX_FAILING = 10_000  # receivers


@dataclass(slots=True)
class _Receiver:
    slots: asyncio.Semaphore
    users: int = 0  # deliveries that hold a slot or wait for one


class ReceiverLimits:
    """At most `total` deliveries at a time, of which at most `per_receiver` to one receiver."""

    def __init__(
        self,
        total: int,
        per_receiver: int = SLOTS_PER_RECEIVER,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._total = asyncio.Semaphore(total)
        self._per_receiver = per_receiver
        self._wait = wait_seconds
        self._receivers: dict[str, _Receiver] = {}
        self._failing: LRUCache[str, bool] = LRUCache(MAX_FAILING)

    @asynccontextmanager
    async def slot(self, name: str) -> AsyncIterator[None]:
        """Hold a slot for a delivery to this receiver; Unavailable in the block marks it failing.

        Raises Overloaded if no slot becomes free in time.
        """
        receiver = self._receivers.get(name)
        if receiver is None:
            receiver = self._receivers[name] = _Receiver(asyncio.Semaphore(self._per_receiver))
        elif name in self._failing:
            raise Overloaded("The last delivery to this receiver failed; another is in progress.")
        receiver.users += 1
        try:
            await self._acquire(receiver)
            try:
                yield
            except Unavailable:
                self._failing[name] = True
                raise
            else:
                self._failing.pop(name, None)
            finally:
                receiver.slots.release()
                self._total.release()
        finally:
            receiver.users -= 1
            if not receiver.users:
                del self._receivers[name]

    async def _acquire(self, receiver: _Receiver) -> None:
        # In this order, a delivery that waits for a slow receiver holds no slot of the total.
        try:
            async with asyncio.timeout(self._wait):
                await receiver.slots.acquire()
                try:
                    await self._total.acquire()
                except BaseException:
                    receiver.slots.release()
                    raise
        except TimeoutError:
            raise Overloaded("Too many notifications are in progress.") from None
