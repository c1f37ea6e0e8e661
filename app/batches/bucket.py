"""The images of a batch that are in a bucket: listed, then read a few at a time, in order.

An object is read up to the size that the listing says, so an object that changes in between takes
no more memory than is reserved for it.
"""

import asyncio
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from app.batches.item import BatchItem, Store, display_name
from app.batches.limits import BatchLimits
from app.uploads.image_upload import image_too_large
from app.uploads.limiter import UploadSlot
from core.bundles.location import BUCKET_NAME
from core.domain.jobs import check_count
from core.errors import Conflict, InvalidRequest, NotFound
from core.ports import ObjectSource, StoredObject

FIELD = "gs_prefix"
AT_ONCE = 8  # objects that are read for one batch
# https://cloud.google.com/storage/docs/objects#naming
MAX_PREFIX_BYTES = 1024
PATTERN = rf"^gs://({BUCKET_NAME})/([^\r\n]*)$"
_WHOLE = re.compile(PATTERN)


@dataclass(frozen=True, slots=True)
class ObjectPrefix:
    """Every object of `bucket` whose name begins with `prefix`, which may be empty."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> "ObjectPrefix":
        """Raises ValueError, whose message is the end of a sentence about the parameter."""
        found = _WHOLE.fullmatch(text)
        if found is None:
            raise ValueError("is not of the form gs://bucket/prefix")
        prefix = cls(found[1], found[2])
        try:
            size = len(prefix.prefix.encode())
        except UnicodeEncodeError:
            raise ValueError("is not text that UTF-8 can encode") from None
        if size > MAX_PREFIX_BYTES:
            raise ValueError(f"is longer than {MAX_PREFIX_BYTES} bytes after the bucket")
        return prefix

    @property
    def folder(self) -> str:
        """The part of the prefix up to its last slash, which all names share."""
        return self.prefix[: self.prefix.rfind("/") + 1]


@dataclass(frozen=True, slots=True)
class BatchSize:
    """What a batch has already: images, and bytes of them."""

    items: int = 0
    bytes_: int = 0


@dataclass(frozen=True, slots=True)
class BucketReader:
    """Reads the objects of one batch. `slot` reserves their bytes."""

    source: ObjectSource
    where: ObjectPrefix
    slot: UploadSlot
    limits: BatchLimits

    async def read(self, before: BatchSize, store: Store) -> None:
        """Pass each object to `store`, in the order of their names.

        Raises InvalidRequest if there are no objects, BatchTooLarge before it reads any,
        Overloaded and Unavailable.
        """
        objects = await self._list(before)
        most = self.limits.max_image_bytes
        ahead: deque[tuple[int, asyncio.Task[BatchItem]]] = deque()
        reserved = 0

        async def store_first() -> None:
            nonlocal reserved
            size, task = ahead[0]
            item = await task
            ahead.popleft()
            reserved -= size
            await store(item)

        try:
            for each in objects:
                size = each.size if each.size <= most else 0
                # Reserves no more than one image of the largest size.
                while ahead and (len(ahead) >= AT_ONCE or reserved + size > most):
                    await store_first()
                self.slot.reserve(size)
                reserved += size
                ahead.append((size, asyncio.create_task(self._read(each))))
            while ahead:
                await store_first()
        finally:
            for _, task in ahead:
                task.cancel()
            await asyncio.gather(*(task for _, task in ahead), return_exceptions=True)

    async def _list(self, before: BatchSize) -> Sequence[StoredObject]:
        where, limits = self.where, self.limits
        try:
            # One more than the limit shows that there are more.
            most = limits.max_items - before.items + 1
            objects = await self.source.list(where.bucket, where.prefix, most)
        except NotFound as error:
            raise InvalidRequest(error.detail, extra={"field": FIELD}) from None
        if not objects:
            raise InvalidRequest("No object's name begins with gs_prefix.", extra={"field": FIELD})
        check_count(before.items + len(objects), limits.max_items)
        size = sum(min(each.size, limits.max_image_bytes) for each in objects)
        if before.bytes_ + size > limits.max_bytes:
            raise limits.too_large()
        return objects

    async def _read(self, stored: StoredObject) -> BatchItem:
        """The object's image, or an item with an error. The slot has reserved the listed size."""
        name = relative_name(stored.name, self.where)
        item = BatchItem.empty(name, self.limits.max_image_bytes)
        if stored.size > self.limits.max_image_bytes:
            return item.fail(image_too_large(self.limits.max_image_bytes))
        try:
            data = b""
            if stored.size:
                data = await self.source.read(self.where.bucket, stored.name, stored.size)
            if len(data) > stored.size:
                raise Conflict("The object changed while it was read.")
        except (NotFound, Conflict) as error:  # deleted or replaced since it was listed
            item.fail(error)
        else:
            await asyncio.to_thread(item.add, data)  # hashes
            item.finish()
        self.slot.release(stored.size - len(item.data))
        return item


def relative_name(name: str, where: ObjectPrefix) -> str:
    """An object's name below the prefix's folder, as `display_name` shows it."""
    return display_name(name.removeprefix(where.folder).lstrip("/"))
