"""Locks for entities: transactions of one process on one entity would only abort each other."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class EntityLocks:
    """One lock per key, which lives as long as a caller holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    def __len__(self) -> int:
        """The number of keys whose lock is held or waited for."""
        return len(self._locks)

    def locked(self, key: Hashable) -> bool:
        lock = self._locks.get(key)
        return lock is not None and lock.locked()

    @asynccontextmanager
    async def lock(self, key: Hashable, wait_seconds: float) -> AsyncIterator[None]:
        """Hold the lock of `key`. Raises TimeoutError after `wait_seconds`."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with asyncio.timeout(wait_seconds):
            await lock.acquire()
        try:
            yield
        finally:
            lock.release()
