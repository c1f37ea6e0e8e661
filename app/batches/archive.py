"""A batch as a zip: written to a temporary file while it arrives, then read entry by entry.

The numbers in the archive are not trusted: each entry is read up to the largest image, and all of
them together up to the largest batch.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

import structlog
from starlette.requests import Request

from app.batches.item import BatchItem, Store, display_name, is_clutter
from app.batches.limits import BatchLimits
from app.batches.zip_format import (
    UNPACK_BYTES,
    DamagedEntry,
    ZipEntry,
    read_directory,
    unpacked,
)
from app.uploads.limiter import UploadSlot
from core.disk_space import is_full
from core.domain.jobs import check_count
from core.errors import InvalidImage, MalformedBody, Unavailable, disk_full, overloaded

T = TypeVar("T")

log = structlog.get_logger(__name__)

MEDIA_TYPES = ("application/zip", "application/x-zip-compressed", "application/x-zip")
AT_ONCE = 4  # archives that one process spools
MAX_DOCUMENT = 4 * 1024 * 1024  # 10,000 examples with long labels
WRITE_BYTES = 1024 * 1024  # written at once


class ZipSpool:
    """The folder in which one process keeps archives while it reads them.

    Only its event loop may use it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._archives = 0

    @contextmanager
    def room(self) -> Iterator[None]:
        """Raises Overloaded if the folder has as many archives as it may."""
        if self._archives >= AT_ONCE:
            raise overloaded()
        self._archives += 1
        try:
            yield
        finally:
            self._archives -= 1

    def open(self) -> IO[bytes]:
        """A file without a name: a killed process leaves nothing. Blocks. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._folder)


async def read_zip(
    request: Request, slot: UploadSlot, limits: BatchLimits, spool: ZipSpool, store: Store
) -> int:
    """Pass each image of the zip to `store`, in the order of its directory.

    Returns how many files were skipped. Raises MalformedBody, BatchTooLarge, Overloaded,
    Unavailable, and what `UploadSlot.read` raises.
    """
    with spool.room():
        file = await in_thread(spool.open)
        try:
            await _write_body(request, slot, limits, file)
            entries = await in_thread(partial(ZipEntries, file, limits))
            await store_entries(entries, slot, store)
            return entries.skipped
        finally:
            await asyncio.to_thread(file.close)


async def read_zip_with_document(
    request: Request,
    slot: UploadSlot,
    limits: BatchLimits,
    spool: ZipSpool,
    store: Store,
    *,
    name: str,
) -> bytes:
    """Same as `read_zip`, of an archive in which the entry `name` is a document.

    Returns the document, or b"" if there is none.
    """
    with spool.room():
        file = await in_thread(spool.open)
        try:
            await _write_body(request, slot, limits, file)
            entries = await in_thread(partial(ZipEntries, file, limits, name))
            document = await in_thread(entries.read_document)
            await store_entries(entries, slot, store)
            return document
        finally:
            await asyncio.to_thread(file.close)


async def store_entries(entries: "ZipEntries", slot: UploadSlot, store: Store) -> None:
    """Read each image, and pass it to `store`."""
    for entry in entries.images:
        item = await in_thread(partial(entries.read, entry))
        slot.reserve(len(item.data))
        await store(item)


async def _write_body(
    request: Request, slot: UploadSlot, limits: BatchLimits, file: IO[bytes]
) -> None:
    unwritten = bytearray()

    async def write() -> None:
        await in_thread(partial(file.write, unwritten))
        slot.release(len(unwritten))
        unwritten.clear()

    body = slot.read(request, limits.max_bytes, limits.too_large, buffered=limits.max_image_bytes)
    async for chunk in body:
        unwritten += chunk
        if len(unwritten) >= WRITE_BYTES:
            await write()
    await write()


class ZipEntries:
    """The images of an archive. Every method blocks.

    `skipped` counts the files that programs make beside images. `unpacked_bytes` is what the images
    unpack to, as declared.
    """

    def __init__(self, file: IO[bytes], limits: BatchLimits, document: str = "") -> None:
        """The entry `document` is no image.

        Raises MalformedBody, and BatchTooLarge if the archive has more than a batch may.
        """
        self._limits = limits
        self._file = file
        entries = read_directory(file)
        self._documents = [entry for entry in entries if document and entry.name == document]
        files = [entry for entry in entries if not entry.is_folder and entry not in self._documents]
        self.images = [entry for entry in files if not is_clutter(entry.name)]
        self.skipped = len(files) - len(self.images)
        check_count(len(self.images), limits.max_items)
        # Overlapping entries are how a small archive unpacks to a large one.
        if sum(entry.packed_size for entry in entries) > file.seek(0, os.SEEK_END):
            raise MalformedBody("The zip's entries overlap.")
        most = limits.max_image_bytes + UNPACK_BYTES
        self.unpacked_bytes = sum(min(entry.size, most) for entry in self.images)
        if self.unpacked_bytes > limits.max_bytes:
            raise limits.too_large()

    def read_document(self) -> bytes:
        """The document, or b"". Raises MalformedBody, OSError."""
        found = bytearray()
        for entry in self._documents[:1]:
            try:
                for part in unpacked(self._file, entry):
                    found += part
                    if len(found) > MAX_DOCUMENT:
                        raise MalformedBody(f"{entry.name} has more than {MAX_DOCUMENT} bytes.")
            except DamagedEntry as fault:
                raise MalformedBody(f"{entry.name} cannot be read. {fault}") from fault
        return bytes(found)

    def read(self, entry: ZipEntry) -> BatchItem:
        """The entry's image, or an item with an error. Raises OSError."""
        item = BatchItem.empty(display_name(entry.name), self._limits.max_image_bytes)
        item.path = entry.name.replace("\\", "/")
        try:
            for part in unpacked(self._file, entry):
                if not item.add(part):
                    break
        except DamagedEntry as fault:
            return item.fail(InvalidImage(str(fault)))
        return item.finish()


async def in_thread(work: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        log.error("batch not spooled", reason=f"{type(error).__name__}: {error.strerror}")
        if is_full(error):
            raise disk_full() from error
        raise Unavailable("The service cannot keep the batch while it reads it.") from error
