"""Places for deliveries, so that a receiver who is slow or dead takes few of them from the others.

Whoever finds no place is refused, and the queue brings the message again: nothing waits here for
long. One whose last delivery failed is tried by one message at a time.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cachetools import LRUCache

from core.errors import Overloaded, Unavailable

PLACES_EACH = 4  # for one receiver
WAIT_SECONDS = 5.0
REMEMBERED_FAILURES = 10_000  # receivers


@dataclass(slots=True)
class _Receiver:
    places: asyncio.Semaphore
    users: int = 0  # who have a place or wait for one


class ReceiverPlaces:
    """`total` deliveries at once, a few for each receiver."""

    def __init__(
        self, total: int, each: int = PLACES_EACH, wait_seconds: float = WAIT_SECONDS
    ) -> None:
        self._total = asyncio.Semaphore(total)
        self._each = each
        self._wait = wait_seconds
        self._receivers: dict[str, _Receiver] = {}
        self._failing: LRUCache[str, bool] = LRUCache(REMEMBERED_FAILURES)

    @asynccontextmanager
    async def at(self, name: str) -> AsyncIterator[None]:
        """A place for a delivery to this receiver, which fails if it raises Unavailable inside.

        Raises Overloaded where there is none.
        """
        receiver = self._receivers.get(name)
        if receiver is None:
            receiver = self._receivers[name] = _Receiver(asyncio.Semaphore(self._each))
        elif name in self._failing:
            raise Overloaded("This receiver fails: one message at a time tries it.")
        receiver.users += 1
        try:
            await self._enter(receiver)
            try:
                yield
            except Unavailable:
                self._failing[name] = True
                raise
            else:
                self._failing.pop(name, None)
            finally:
                receiver.places.release()
                self._total.release()
        finally:
            receiver.users -= 1
            if not receiver.users:
                del self._receivers[name]

    async def _enter(self, receiver: _Receiver) -> None:
        # The receiver's first: a place of all is not held by one who waits for a slow receiver.
        try:
            async with asyncio.timeout(self._wait):
                await receiver.places.acquire()
                try:
                    await self._total.acquire()
                except BaseException:
                    receiver.places.release()
                    raise
        except TimeoutError:
            raise Overloaded("There are more notifications than places for them.") from None
