"""Batches as they come in: whatever their form, their images end in storage, one by one.

Those that lie in a bucket are fetched from there, and then are as if they had been sent.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request

from app.batches.archive import MEDIA_TYPES, ZipSpool, read_zip
from app.batches.bucket import FIELD, ObjectPrefix, ObjectReader, Taken
from app.batches.form import MAX_MANIFEST_BYTES, read_body, read_form
from app.batches.limits import BatchImage, BatchLimits
from app.batches.manifest import BatchManifest, parse_manifest
from app.batches.storing import Intake
from app.images.header import accepted_type, inspect_header
from app.uploads.limiter import UploadSlot
from app.uploads.multipart import is_form
from core.backends import Backend
from core.domain.records import blob_name
from core.errors import InvalidRequest, UnsupportedMediaType
from core.settings import FORM_OVERHEAD, Settings

JSON = "application/json"
ACCEPTED = ("multipart/form-data", MEDIA_TYPES[0], JSON)


@dataclass(frozen=True, slots=True)
class Batch:
    """`images` came with the request, `bytes_` in all: they are stored, or have an `error`."""

    images: list[BatchImage]
    manifest: BatchManifest
    bytes_: int = 0


class Batches:
    """What one process needs to read batches."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._blobs = backend.blobs
        self._objects = backend.objects
        self._import_buckets = frozenset(settings.import_buckets)
        self._backend = settings.backend
        self._max_pixels = settings.max_image_pixels
        self._limits = BatchLimits(settings.max_batch_bytes, settings.max_image_bytes)
        self._spool = ZipSpool(settings.data_dir / "spool")
        # Beside these the image is held that is arriving.
        room = settings.max_upload_bytes_in_flight - settings.max_image_bytes - FORM_OVERHEAD
        self._most_storing = min(settings.max_image_bytes, room)

    async def read(
        self, request: Request, tenant: str, slot: UploadSlot, count: Callable[[int], None]
    ) -> Batch:
        """Read the request; `count` is called with the size of each image.

        Raises UnsupportedMediaType, MalformedBody, InvalidRequest, BatchTooLarge, Overloaded,
        UploadTooSlow, Unavailable, and ClientDisconnect. Then no more than images were stored.
        """
        content_type = request.headers.get("content-type", "")
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type == JSON:
            return Batch([], parse_manifest(await _small_body(request, slot)))
        intake = Intake(partial(self._store, tenant), slot, self._most_storing)
        size = 0

        async def take(image: BatchImage) -> None:
            nonlocal size
            size += len(image.data)
            count(len(image.data))
            await intake.take(image)

        try:
            text = b""
            if is_form(content_type):
                text = await read_form(request, slot, self._limits, take)
            elif media_type in MEDIA_TYPES:
                await read_zip(request, slot, self._limits, self._spool, take)
            else:
                raise UnsupportedMediaType(
                    "Send a form, a zip, or a JSON document.", extra={"accepted": ACCEPTED}
                )
            manifest = parse_manifest(text)
            return Batch(await intake.finish(), manifest, size)
        finally:
            await intake.close()

    def check_import(self, where: ObjectPrefix) -> None:
        """Raise InvalidRequest where its objects are not for clients, or there can be none."""
        if self._backend == "embedded":
            reason = "needs BACKEND=gcp or emulator: send images, or their hashes"
        elif where.bucket not in self._import_buckets:
            reason = "is of a bucket that the setting IMPORT_BUCKETS does not allow"
        else:
            return
        raise InvalidRequest(f"gs_prefix {reason}.", extra={"field": FIELD})

    async def fetch(
        self,
        where: ObjectPrefix,
        before: Taken,
        tenant: str,
        slot: UploadSlot,
        count: Callable[[int], None],
    ) -> list[BatchImage]:
        """The objects' images, stored or with an error; `count` as in `read`.

        Raises InvalidRequest, BatchTooLarge, Overloaded, Unavailable.
        """
        self.check_import(where)
        assert self._objects is not None, "opened wherever buckets are allowed"
        intake = Intake(partial(self._store, tenant), slot, self._most_storing)
        reader = ObjectReader(self._objects, where, slot, self._limits)

        async def take(image: BatchImage) -> None:
            count(len(image.data))
            await intake.take(image)

        try:
            with slot.paused():  # nobody sends
                await reader.read(before, take)
                return await intake.finish()
        finally:
            await intake.close()

    async def _store(self, tenant: str, image: BatchImage) -> None:
        content_type = accepted_type(image.data)
        await asyncio.to_thread(inspect_header, image.data, content_type, self._max_pixels)
        await self._blobs.put(blob_name(tenant, image.image_hash), image.data, content_type)


async def _small_body(request: Request, slot: UploadSlot) -> bytes:
    body = bytearray()

    async def feed(chunk: bytes) -> None:
        body.extend(chunk)

    limits = BatchLimits(MAX_MANIFEST_BYTES, MAX_MANIFEST_BYTES)
    await read_body(request, slot, limits, feed)
    return bytes(body)
