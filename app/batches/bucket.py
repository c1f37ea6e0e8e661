"""A batch's images that lie in a bucket: listed, then read a few at a time, in the listing's order.

What the listing says of an object is what may be read of it, so nothing that changes meanwhile
takes more memory than was kept free for it.
"""

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from app.batches.form import Take
from app.batches.limits import (
    MAX_NAME,
    BatchImage,
    BatchLimits,
    display_name,
    empty,
    too_many_bytes,
)
from app.uploads.image_upload import too_large
from app.uploads.limiter import UploadSlot
from core.bundles.location import BUCKET_NAME
from core.domain.jobs import check_count
from core.errors import Conflict, InvalidImage, InvalidRequest, NotFound
from core.ports import ObjectSource, StoredObject

# https://cloud.google.com/storage/docs/objects#naming
MAX_PREFIX_BYTES = 1024
PATTERN = rf"^gs://({BUCKET_NAME})/([^\r\n]*)$"
_WHOLE = re.compile(PATTERN)


@dataclass(frozen=True, slots=True)
class ObjectPrefix:
    """Every object of `bucket` whose name begins with `prefix`; with none, every object."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> "ObjectPrefix":
        """Raises ValueError that says what is wrong, as the end of a sentence."""
        found = _WHOLE.fullmatch(text)
        if found is None:
            raise ValueError("is not of the form gs://bucket/prefix")
        prefix = cls(found[1], found[2])
        try:
            size = len(prefix.prefix.encode())
        except UnicodeEncodeError:
            raise ValueError("is not text that UTF-8 has a form for") from None
        if size > MAX_PREFIX_BYTES:
            raise ValueError(f"is longer than {MAX_PREFIX_BYTES} bytes behind the bucket")
        return prefix

    @property
    def folder(self) -> str:
        """What all of the names share, up to the last slash."""
        return self.prefix[: self.prefix.rfind("/") + 1]


AT_ONCE = 8
FIELD = "gs_prefix"


@dataclass(frozen=True, slots=True)
class Taken:
    """What a batch has already: images, and bytes of them."""

    items: int = 0
    bytes_: int = 0


class ObjectReader:
    """Reads the objects of one batch; `slot` holds the bytes."""

    def __init__(
        self, source: ObjectSource, where: ObjectPrefix, slot: UploadSlot, limits: BatchLimits
    ) -> None:
        self._source = source
        self._where = where
        self._slot = slot
        self._limits = limits

    async def read(self, before: Taken, take: Take) -> None:
        """Hand each object to `take`, in the order of their names.

        `take` owns the bytes and lets them go. Raises InvalidRequest where there are no objects,
        BatchTooLarge before any is read, Overloaded, and Unavailable.
        """
        found = await self._listed(before)
        await self._slot.reading(self._in_order(found, take))

    async def _listed(self, before: Taken) -> Sequence[StoredObject]:
        where, limits = self._where, self._limits
        try:
            # One more than there may be tells whether there are more.
            room = limits.items - before.items + 1
            found = await self._source.list(where.bucket, where.prefix, room)
        except NotFound as error:
            raise InvalidRequest(error.detail, extra={"field": FIELD}) from None
        if not found:
            raise InvalidRequest("No object's name begins with gs_prefix.", extra={"field": FIELD})
        check_count(before.items + len(found), limits.items)
        size = sum(min(each.size, limits.image_bytes) for each in found)
        if before.bytes_ + size > limits.bytes_:
            raise too_many_bytes(limits)
        return found

    async def _in_order(self, found: Sequence[StoredObject], take: Take) -> None:
        most = self._limits.image_bytes
        ahead: deque[tuple[int, asyncio.Task[BatchImage]]] = deque()
        held = 0

        async def hand_on() -> None:
            nonlocal held
            size, task = ahead[0]
            image = await task
            ahead.popleft()
            held -= size
            await take(image)

        try:
            for each in found:
                size = each.size if each.size <= most else 0
                # One image, however large, or several that are no larger together: the room that
                # a batch has beside what it is storing.
                while ahead and (len(ahead) >= AT_ONCE or held + size > most):
                    await hand_on()
                self._slot.keep(size)
                held += size
                ahead.append((size, asyncio.create_task(self._image(each))))
            while ahead:
                await hand_on()
        finally:
            for _, task in ahead:
                task.cancel()
            await asyncio.gather(*(task for _, task in ahead), return_exceptions=True)

    async def _image(self, stored: StoredObject) -> BatchImage:
        """One image, or why there is none; `slot` has kept what the listing says."""
        image = BatchImage(relative_name(stored.name, self._where))
        if stored.size > self._limits.image_bytes:
            image.error = too_large(self._limits.image_bytes)
            return image
        if not stored.size:
            image.error = empty()
            return image
        try:
            data = await self._source.read(self._where.bucket, stored.name, stored.size)
            if len(data) > stored.size:
                raise Conflict("The object has changed while it was read.")
            if not data:
                raise empty()
        except (NotFound, Conflict, InvalidImage) as error:  # deleted or replaced since
            image.error = error
        else:
            image.data, image.image_hash = await asyncio.to_thread(_hashed, data)
        self._slot.let_go(stored.size - len(image.data))
        return image


def relative_name(name: str, where: ObjectPrefix) -> str:
    """An object's name below the prefix's folder, to be shown; each part as a file's name is."""
    parts = (display_name(part) for part in name.removeprefix(where.folder).split("/"))
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:MAX_NAME]


def _hashed(data: bytes) -> tuple[bytearray, str]:
    return bytearray(data), hashlib.sha256(data).hexdigest()
