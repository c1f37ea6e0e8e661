"""Turns at one entity, for transactions of one process that would only abort each other."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class Turns:
    """Different keys do not wait for each other. A lock lives as long as somebody needs it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    def __len__(self) -> int:
        """How many keys somebody has, or waits for."""
        return len(self._locks)

    def taken(self, key: Hashable) -> bool:
        lock = self._locks.get(key)
        return lock is not None and lock.locked()

    @asynccontextmanager
    async def turn(self, key: Hashable, patience: float) -> AsyncIterator[None]:
        """One at a time for `key`. Raises TimeoutError after `patience` seconds of waiting."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with asyncio.timeout(patience):
            await lock.acquire()
        try:
            yield
        finally:
            lock.release()
