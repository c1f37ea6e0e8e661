"""A batch as a zip: written to a temporary file while it arrives, then read entry by entry.

The numbers in the archive are not trusted: each entry is read up to the largest image, and all of
them together up to the largest batch.
"""

import asyncio
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

import structlog
from starlette.requests import Request

from app.batches.form import Store
from app.batches.item import BatchItem, display_name
from app.batches.limits import BatchLimits
from app.uploads.limiter import UploadSlot
from core.domain.jobs import check_count
from core.errors import InvalidImage, MalformedBody, Unavailable, overloaded

T = TypeVar("T")

log = structlog.get_logger(__name__)

MEDIA_TYPES = ("application/zip", "application/x-zip-compressed")
AT_ONCE = 4  # archives that one process spools
WRITE_BYTES = 1024 * 1024  # written at once
UNPACK_BYTES = 256 * 1024  # unpacked at once
# A directory of 1,000 images takes 200 kB; Python needs ten times the memory for what it reads.
MAX_DIRECTORY = 1024 * 1024
# Others take the memory that the archive asks for: an LZMA dictionary may have four gigabytes.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1


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
) -> None:
    """Pass each image of the zip to `store`, in the order of its directory.

    Raises MalformedBody, BatchTooLarge, Overloaded, Unavailable, and what `UploadSlot.read` raises.
    """
    with spool.room():
        file = await _in_thread(spool.open)
        try:
            await _write_body(request, slot, limits, file)
            entries = await _in_thread(partial(ZipEntries, file, limits))
            for entry in entries.images:
                item = await _in_thread(partial(entries.read, entry))
                slot.reserve(len(item.data))
                await store(item)
        finally:
            await asyncio.to_thread(file.close)


async def _write_body(
    request: Request, slot: UploadSlot, limits: BatchLimits, file: IO[bytes]
) -> None:
    unwritten = bytearray()

    async def write() -> None:
        await _in_thread(partial(file.write, unwritten))
        slot.release(len(unwritten))
        unwritten.clear()

    body = slot.read(request, limits.max_bytes, limits.too_large, buffered=limits.max_image_bytes)
    async for chunk in body:
        unwritten += chunk
        if len(unwritten) >= WRITE_BYTES:
            await write()
    await write()


class ZipEntries:
    """The images of an archive. Every method blocks."""

    def __init__(self, file: IO[bytes], limits: BatchLimits) -> None:
        """Raises MalformedBody, and BatchTooLarge if the archive has more than a batch may."""
        self._limits = limits
        try:
            self._archive = zipfile.ZipFile(_BoundedFile(file))
        except OSError:
            raise
        except Exception as error:
            raise MalformedBody("The body is not a zip that can be read.") from error
        infos = self._archive.infolist()
        self.images = [info for info in infos if not _skipped(info)]
        check_count(len(self.images), limits.max_items)
        # Overlapping entries are how a small archive unpacks to a large one.
        if sum(info.compress_size for info in infos) > file.seek(0, os.SEEK_END):
            raise MalformedBody("The zip's entries overlap.")
        # `zipfile` unpacks no more of an entry than the directory says.
        most = limits.max_image_bytes + UNPACK_BYTES
        if sum(min(info.file_size, most) for info in self.images) > limits.max_bytes:
            raise limits.too_large()

    def read(self, info: zipfile.ZipInfo) -> BatchItem:
        """The entry's image, or an item with an error. Raises OSError."""
        item = BatchItem.empty(display_name(info.filename), self._limits.max_image_bytes)
        if info.flag_bits & _ENCRYPTED:
            return item.fail(InvalidImage("The zip's entry is encrypted."))
        if info.compress_type not in _METHODS:
            return item.fail(InvalidImage("The zip's entry is neither stored nor deflated."))
        try:
            with self._archive.open(info) as entry:
                while (part := entry.read(UNPACK_BYTES)) and item.add(part):
                    pass
        except OSError:
            raise
        except Exception:  # noqa: BLE001 - a damaged entry makes zipfile raise anything
            return item.fail(InvalidImage("The zip's entry is damaged."))
        return item.finish()


class _BoundedFile:
    """A file for `zipfile`, which would read as far as the numbers in the archive say."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY:
            raise zipfile.BadZipFile("the directory is too large")
        # Without a size, `zipfile` reads the end of the archive, which the format bounds.
        return self._file.read(size if size >= 0 else MAX_DIRECTORY)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET and not 0 <= offset <= self._size:
            raise zipfile.BadZipFile("an offset is outside of the archive")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


def _skipped(info: zipfile.ZipInfo) -> bool:
    """Whether the entry is a folder, or a file that an operating system adds to archives."""
    # Not `is_dir`, which Python 3.11 cannot answer for an entry without a name. Windows PowerShell
    # writes backslashes.
    *folders, name = info.filename.replace("\\", "/").split("/")
    return bool(folders and not name) or any(_hidden(part) for part in (*folders, name))


def _hidden(part: str) -> bool:
    return part == "__MACOSX" or (part.startswith(".") and part not in (".", ".."))


async def _in_thread(work: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        log.error("batch not spooled", reason=f"{type(error).__name__}: {error.strerror}")
        raise Unavailable("The service cannot keep the batch while it reads it.") from error
