"""A batch as a form: the field `imgs`, repeated, and an optional field `manifest`.

An image that is not accepted is an item with an error. A zip in the field `imgs` is read as the
images that it contains. An invalid form is refused as a whole.
"""

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import IO

from starlette.requests import Request

from app.batches.archive import ZipEntries, ZipSpool, in_thread, store_entries
from app.batches.item import BatchItem, Store, display_name, is_clutter
from app.batches.limits import BatchLimits
from app.uploads.disposition import PartName
from app.uploads.image_upload import misplaced_file
from app.uploads.limiter import UploadSlot
from app.uploads.multipart import FormParser
from core.domain.jobs import check_count
from core.errors import BatchTooLarge, InvalidRequest

FIELD, MANIFEST_FIELD = "imgs", "manifest"
MAX_MANIFEST_BYTES = 1024 * 1024  # 1,000 hashes, and metadata of half a kilobyte each
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # how a zip, and an empty one, begin


@dataclass(frozen=True, slots=True)
class FormContent:
    """The field `manifest`, or b"", and how many files were skipped."""

    manifest: bytes
    skipped: int


@dataclass(frozen=True, slots=True)
class ArchivePart:
    """The next bytes of a zip in the form. `last` tells whether they are its last ones."""

    data: bytes
    last: bool


async def read_form(
    request: Request, slot: UploadSlot, limits: BatchLimits, spool: ZipSpool, store: Store
) -> FormContent:
    """Pass each image of the form to `store`, in order.

    Raises MalformedBody, InvalidRequest, BatchTooLarge, Unavailable, and what `UploadSlot.read`
    raises.
    """
    headers = request.headers
    form = BatchForm(headers.get("content-type", ""), headers.get("user-agent", ""), limits)
    archives = _Archives(form, slot, limits, spool, store)
    body = slot.read(request, limits.max_bytes, limits.too_large, buffered=limits.max_image_bytes)
    try:
        async for chunk in body:
            kept = form.kept
            form.feed(chunk)
            slot.release(len(chunk) - (form.kept - kept))
            for part in form.take():
                if isinstance(part, BatchItem):
                    await store(part)
                else:
                    await archives.add(part)
        form.close()
    finally:
        await archives.close()
    return FormContent(bytes(form.manifest), form.skipped)


class BatchForm(FormParser):
    """Collects images, zips and the manifest.

    `kept` counts the bytes of these, without discarded ones. `images` counts the images, `skipped`
    the files that programs make beside images.
    """

    def __init__(self, content_type: str, user_agent: str, limits: BatchLimits) -> None:
        super().__init__(content_type, user_agent)
        self.manifest = bytearray()
        self.kept = 0
        self.images = self.skipped = 0
        self._limits = limits
        self._complete: list[BatchItem | ArchivePart] = []
        self._item: BatchItem | None = None  # the image that is being read
        self._in_archive = self._ignored = self._no_file_chosen = False
        self._empty_files = self._manifests = 0

    def take(self) -> list[BatchItem | ArchivePart]:
        """What is complete since the last call."""
        complete, self._complete = self._complete, []
        return complete

    def close(self) -> None:
        """Raises MalformedBody, and InvalidRequest if the client has chosen no file."""
        super().close()
        if self._empty_files and not self.images and not self.manifest:
            raise InvalidRequest(
                f"The field {FIELD!r} is empty. No file was chosen.", extra={"field": FIELD}
            )

    def part_begins(self, name: PartName) -> None:
        self._ignored = False
        # A browser sends an empty file with an empty name for a field in which none is chosen.
        self._no_file_chosen = name.file == ""
        if name.field == FIELD:
            if name.file and is_clutter(name.file):
                self.skipped += 1
                self._ignored = True
                return
            self.count_images(1)
            shown = display_name(name.file or "")
            self._item = BatchItem.empty(shown, self._limits.max_image_bytes)
        elif name.field == MANIFEST_FIELD:
            self._manifests += 1
            if self._manifests > 1:
                raise InvalidRequest(
                    f"The form has more than one field {MANIFEST_FIELD!r}.",
                    extra={"field": MANIFEST_FIELD},
                )
        elif name.file:
            raise misplaced_file(name.field, FIELD)
        else:
            # An option that is sent as a field would have no effect.
            raise InvalidRequest(
                f"A form may have the fields {FIELD!r} and {MANIFEST_FIELD!r}, and no others."
            )

    def count_images(self, count: int) -> None:
        """Raises BatchTooLarge."""
        self.images += count
        check_count(self.images, self._limits.max_items)

    def part_data(self, data: bytes) -> None:
        if self._ignored:
            return
        if self._in_archive:
            self.kept += len(data)
            self._complete.append(ArchivePart(data, last=False))
        elif self._item is not None:
            held = self._item.data
            if len(held) < 4 and not self._item.error and (held + data[:4]).startswith(_ZIP):
                self._begin_archive(held + data)
                self.kept += len(data)
                return
            before = len(held)
            self._item.add(data)
            self.kept += len(self._item.data) - before
        else:
            self.manifest += data
            self.kept += len(data)
            if len(self.manifest) > MAX_MANIFEST_BYTES:
                raise BatchTooLarge(f"The manifest is larger than {MAX_MANIFEST_BYTES} bytes.")

    def part_ends(self) -> None:
        if self._in_archive:
            self._complete.append(ArchivePart(b"", last=True))
            self._in_archive = False
        elif self._item is not None:
            if self._no_file_chosen and not self._item.data and self._item.error is None:
                self._empty_files += 1
                self.images -= 1
            else:
                self._complete.append(self._item.finish())
            self._item = None

    def _begin_archive(self, data: bytes | bytearray) -> None:
        self._in_archive = True
        self._complete.append(ArchivePart(bytes(data), last=False))
        self.images -= 1  # its entries count instead
        self._item = None


class _Archives:
    """Writes the zips of a form to the spool, one at a time, and stores their images."""

    def __init__(
        self,
        form: BatchForm,
        slot: UploadSlot,
        limits: BatchLimits,
        spool: ZipSpool,
        store: Store,
    ) -> None:
        self._form, self._slot, self._store = form, slot, store
        self._limits, self._spool = limits, spool
        self._file: IO[bytes] | None = None
        self._unpacked_bytes = 0
        self._room = ExitStack()

    async def add(self, part: ArchivePart) -> None:
        """Raises MalformedBody, BatchTooLarge, Overloaded, Unavailable."""
        if self._file is None:
            self._room.enter_context(self._spool.room())
            self._file = await in_thread(self._spool.open)
        await in_thread(partial(self._file.write, part.data))
        self._slot.release(len(part.data))
        if part.last:
            await self._finish(self._file)

    async def close(self) -> None:
        self._room.close()
        if self._file is not None:
            await asyncio.to_thread(self._file.close)

    async def _finish(self, file: IO[bytes]) -> None:
        entries = await in_thread(partial(ZipEntries, file, self._limits))
        self._form.count_images(len(entries.images))
        self._form.skipped += entries.skipped
        self._unpacked_bytes += entries.unpacked_bytes
        if self._unpacked_bytes > self._limits.max_bytes:
            raise self._limits.too_large()
        await store_entries(entries, self._slot, self._store)
        await self.close()
        self._file = None
