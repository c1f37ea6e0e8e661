"""Checks and stores a batch's images while the next ones arrive, a few at a time."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from app.batches.limits import BatchImage
from app.uploads.limiter import UploadSlot
from core.errors import GlimpseError, Unavailable

AT_ONCE = 8
PAUSES = (0.2, 0.8, 2.0)  # seconds at most before an image that met a fault is stored again

Store = Callable[[BatchImage], Awaitable[None]]


class Intake:
    """Hands each image to `store`, and lets go of its bytes once that has returned.

    While `AT_ONCE` images, or more than `most_bytes` of them, are being stored, the sender waits.
    What `store` raises ends the batch, except where it is about the image: that is the image's
    `error`. Where it is Unavailable that is tried a few times. Equal images are stored once.
    """

    def __init__(self, store: Store, slot: UploadSlot, most_bytes: int) -> None:
        self.images: list[BatchImage] = []  # in the order of their arrival
        self._store = store
        self._slot = slot
        self._most_bytes = most_bytes
        self._bytes = 0
        self._first: dict[str, BatchImage] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self, image: BatchImage) -> None:
        """Raises what an image before has met."""
        self.images.append(image)
        if image.error is not None:
            return
        if image.image_hash in self._first:
            self._let_go(image)
            return
        self._first[image.image_hash] = image
        self._bytes += len(image.data)
        self._tasks.add(asyncio.create_task(self._stored(image)))
        while len(self._tasks) >= AT_ONCE or self._bytes > self._most_bytes:
            with self._slot.paused():
                await self._some()

    async def finish(self) -> list[BatchImage]:
        """All of them, stored or with an error. Raises what one has met."""
        while self._tasks:
            await self._some()
        for image in self.images:
            if image.image_hash:
                image.error = self._first[image.image_hash].error
        return self.images

    async def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _some(self) -> None:
        done, self._tasks = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        # Of several that failed at once all are heard, and the first is told.
        failures = [failure for task in done if (failure := task.exception())]
        if failures:
            raise failures[0]

    async def _stored(self, image: BatchImage) -> None:
        size = len(image.data)
        try:
            await self._persistently(image)
        except GlimpseError as error:
            if error.status >= 500:
                raise
            image.error = error
        finally:
            self._bytes -= size
            self._let_go(image)

    async def _persistently(self, image: BatchImage) -> None:
        """Of a thousand images one may meet a fault: all would have to be sent again for it."""
        for pause in PAUSES:
            try:
                return await self._store(image)
            except Unavailable:
                await asyncio.sleep(random.uniform(0.5, 1.0) * pause)
        return await self._store(image)

    def _let_go(self, image: BatchImage) -> None:
        self._slot.let_go(len(image.data))
        image.data = bytearray()
