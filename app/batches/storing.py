"""Checks and stores the images of a batch while the next ones arrive, a few at a time."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from app.batches.item import BatchItem
from app.uploads.limiter import UploadSlot
from core.errors import GlimpseError, Unavailable

AT_ONCE = 8
# Longest pauses in seconds before the storage of an image is tried again.
PAUSES = (0.2, 0.8, 2.0)


class BatchStorer:
    """Passes each image to `put`, and releases its bytes afterwards. Equal images are stored once.

    While `AT_ONCE` images, or more than `max_bytes` of them, are being stored, `store` waits.
    A refusal by `put` is the item's error. Unavailable is retried, and then ends the batch.
    """

    def __init__(
        self, put: Callable[[BatchItem], Awaitable[None]], slot: UploadSlot, max_bytes: int
    ) -> None:
        self._put = put
        self._slot = slot
        self._max_bytes = max_bytes
        self._bytes = 0  # being stored
        self._items: list[BatchItem] = []  # in the order of their arrival
        self._by_hash: dict[str, BatchItem] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def store(self, item: BatchItem) -> None:
        """Begin to store an item. Raises the failure of an earlier one."""
        self._items.append(item)
        self._slot.image_sizes.append(len(item.data))
        if item.error is not None:
            return
        if item.image_hash in self._by_hash:
            self._release(item)
            return
        self._by_hash[item.image_hash] = item
        self._bytes += len(item.data)
        self._tasks.add(asyncio.create_task(self._store(item)))
        while len(self._tasks) >= AT_ONCE or self._bytes > self._max_bytes:
            await self._wait_for_one()

    async def finish(self) -> list[BatchItem]:
        """All items, each stored or with an error. Raises the failure of one."""
        while self._tasks:
            await self._wait_for_one()
        for item in self._items:
            if item.image_hash:
                item.error = self._by_hash[item.image_hash].error
        return self._items

    async def close(self) -> None:
        """Cancel what is not finished."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _wait_for_one(self) -> None:
        done, self._tasks = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        # Every exception is retrieved, or asyncio would log it; the first is raised.
        failures = [failure for task in done if (failure := task.exception())]
        if failures:
            raise failures[0]

    async def _store(self, item: BatchItem) -> None:
        size = len(item.data)
        try:
            await self._put_with_retries(item)
        except GlimpseError as error:
            if error.status >= 500:
                raise
            item.error = error
        finally:
            self._bytes -= size
            self._release(item)

    async def _put_with_retries(self, item: BatchItem) -> None:
        """Without retries, one fault among a thousand images would refuse the whole batch."""
        for pause in PAUSES:
            try:
                return await self._put(item)
            except Unavailable:
                await asyncio.sleep(random.uniform(0.5, 1.0) * pause)
        return await self._put(item)

    def _release(self, item: BatchItem) -> None:
        self._slot.release(len(item.data))
        item.discard()
