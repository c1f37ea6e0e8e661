"""Reads batches of every kind: a form, a zip, a JSON document, or objects of a bucket.

The images are checked and stored one by one while the batch is read.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

from starlette.requests import Request

from app.batches.archive import (
    MAX_DOCUMENT,
    MEDIA_TYPES,
    ZipSpool,
    read_zip,
    read_zip_with_document,
)
from app.batches.bucket import FIELD, BatchSize, BucketReader, ObjectPrefix
from app.batches.form import MAX_MANIFEST_BYTES, read_form
from app.batches.item import BatchItem
from app.batches.limits import BatchLimits
from app.batches.manifest import BatchManifest, parse_manifest
from app.batches.storing import BatchStorer
from app.images.header import inspect_header
from app.uploads.limiter import UploadSlot
from app.uploads.multipart import is_form
from core.backends import Backend
from core.domain.policy import MAX_EXAMPLES
from core.domain.records import blob_name
from core.errors import InvalidRequest, UnsupportedMediaType
from core.imaging.formats import accepted_type
from core.settings import FORM_OVERHEAD, Settings

JSON = "application/json"
ACCEPTED = ("multipart/form-data", MEDIA_TYPES[0], JSON)
# What clients send if their user names no type: none, the default of RFC 9110, 8.3, or curl's.
_UNLABELLED = ("", "application/octet-stream", "application/x-www-form-urlencoded")
EXAMPLES_FILE = "examples.json"  # in a zip: labelled images by their hashes, and options


@dataclass(frozen=True, slots=True)
class Batch:
    """The images that a request contains, each stored or with an error, and its manifest.

    `skipped` counts the files that programs make beside images, such as `Thumbs.db`.
    """

    items: list[BatchItem]
    manifest: BatchManifest
    skipped: int = 0


class BatchKind(Enum):
    """What the body of a route for one kind of batch contains.

    A zip may be unlabelled. A document must be labelled as JSON, as on every other route
    (`app.http.json_body.check_content_type`). A label of another kind of body is refused.
    """

    ZIP = (MEDIA_TYPES[0], "Send the bytes of a zip.")
    MANIFEST = (JSON, "Send a JSON document.")

    def media_type(self, labelled: str) -> str:
        """Return the media type of the body. Raises UnsupportedMediaType."""
        wanted, detail = self.value
        accepted = {*MEDIA_TYPES, *_UNLABELLED} if self is BatchKind.ZIP else {JSON}
        if labelled not in accepted:
            raise UnsupportedMediaType(detail, extra={"accepted": [wanted]})
        return wanted


class BatchReader:
    """Reads the batches of one process."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._blobs = backend.blobs
        self._objects = backend.objects
        self._import_buckets = frozenset(settings.import_buckets)
        self._backend = settings.backend
        self._max_pixels = settings.pixel_limits
        self._limits = BatchLimits(settings.max_batch_bytes, settings.max_image_bytes)
        self._spool = ZipSpool(settings.data_dir / "spool")
        # An image that is arriving needs room beside those that are being stored.
        room = settings.max_upload_bytes_in_flight - settings.max_image_bytes - FORM_OVERHEAD
        self._max_storing_bytes = min(settings.max_image_bytes, room)

    async def read(
        self, request: Request, tenant: str, slot: UploadSlot, kind: BatchKind | None = None
    ) -> Batch:
        """Read the request, and store its images. `kind` is what its path says that it contains.

        Raises UnsupportedMediaType, MalformedBody, InvalidRequest, BatchTooLarge, Overloaded,
        Unavailable, and what `UploadSlot.read` raises. Images may be stored even then.
        """
        content_type = request.headers.get("content-type", "")
        media_type = content_type.partition(";")[0].strip().lower()
        if kind is not None:
            media_type = kind.media_type(media_type)
        if media_type == JSON:
            return Batch([], parse_manifest(await _read_document(request, slot)))
        async with self._storer(tenant, slot) as storer:
            document, skipped = b"", 0
            if is_form(content_type):
                form = await read_form(request, slot, self._limits, self._spool, storer.store)
                document, skipped = form.manifest, form.skipped
            elif media_type in MEDIA_TYPES:
                skipped = await read_zip(request, slot, self._limits, self._spool, storer.store)
            else:
                raise UnsupportedMediaType(
                    "Send a form, a zip, or a JSON document.", extra={"accepted": ACCEPTED}
                )
            manifest = parse_manifest(document)
            return Batch(await storer.finish(), manifest, skipped)

    async def read_examples(
        self, request: Request, tenant: str, slot: UploadSlot, kind: BatchKind | None = None
    ) -> tuple[list[BatchItem], bytes]:
        """Read images in folders, whose items have paths, and the JSON document beside them.

        The body is a zip, or the document alone. Images are stored as by `read`, whose errors this
        raises.
        """
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind is not None:
            media_type = kind.media_type(media_type)
        if media_type == JSON:
            return [], await _read_document(request, slot, MAX_DOCUMENT)
        if media_type not in MEDIA_TYPES:
            raise UnsupportedMediaType(
                "Send a zip or a JSON document.", extra={"accepted": [MEDIA_TYPES[0], JSON]}
            )
        limits = replace(self._limits, max_items=MAX_EXAMPLES)
        async with self._storer(tenant, slot) as storer:
            document = await read_zip_with_document(
                request, slot, limits, self._spool, storer.store, name=EXAMPLES_FILE
            )
            return await storer.finish(), document

    def check_import(self, where: ObjectPrefix) -> None:
        """Raise InvalidRequest if clients may not import from that bucket."""
        if self._backend == "embedded":
            reason = "needs BACKEND=gcp or emulator: send images, or their hashes"
        elif where.bucket not in self._import_buckets:
            reason = "is of a bucket that the setting IMPORT_BUCKETS does not allow"
        else:
            return
        raise InvalidRequest(f"gs_prefix {reason}.", extra={"field": FIELD})

    async def fetch(
        self, where: ObjectPrefix, before: BatchSize, tenant: str, slot: UploadSlot
    ) -> list[BatchItem]:
        """Read and store the objects of a bucket. Each item is stored or has an error.

        Raises InvalidRequest, BatchTooLarge, Overloaded, Unavailable.
        """
        self.check_import(where)
        assert self._objects is not None, "backends with buckets have them"
        reader = BucketReader(self._objects, where, slot, self._limits)
        async with self._storer(tenant, slot) as storer:
            with slot.interruptible():
                await reader.read(before, storer.store)
            return await storer.finish()

    @asynccontextmanager
    async def _storer(self, tenant: str, slot: UploadSlot) -> AsyncIterator[BatchStorer]:
        storer = BatchStorer(partial(self._put, tenant), slot, self._max_storing_bytes)
        try:
            yield storer
        finally:
            await storer.close()

    async def _put(self, tenant: str, item: BatchItem) -> None:
        content_type = accepted_type(item.data)
        await asyncio.to_thread(inspect_header, item.data, content_type, self._max_pixels)
        await self._blobs.put(blob_name(tenant, item.image_hash), item.data, content_type)


async def _read_document(
    request: Request, slot: UploadSlot, most: int = MAX_MANIFEST_BYTES
) -> bytes:
    document = bytearray()
    async for chunk in slot.read(request, most, BatchLimits(most, most).too_large):
        document += chunk
    return bytes(document)
