"""A batch that came as a zip: kept aside while it arrives, then read entry by entry.

Whatever the archive says of itself: each entry is read up to the largest image and no further, and
all of them together up to the largest batch.
"""

import asyncio
import hashlib
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

from app.batches.form import Take, read_body
from app.batches.limits import BatchImage, BatchLimits, display_name, empty, too_many_bytes
from app.uploads.image_upload import too_large
from app.uploads.limiter import UploadSlot
from core.domain.jobs import check_count
from core.errors import InvalidImage, MalformedBody, Unavailable, overloaded

T = TypeVar("T")

log = structlog.get_logger(__name__)

MEDIA_TYPES = ("application/zip", "application/x-zip-compressed")
AT_ONCE = 4  # archives that one process keeps aside at once
PIECE = 1024 * 1024  # bytes written at once
STEP = 256 * 1024  # bytes unpacked at once
# A directory of 1,000 images takes 200 kB; Python needs ten times the memory for what it reads.
MAX_DIRECTORY = 1024 * 1024
# The others need memory as the archive says: an LZMA dictionary may have four gigabytes.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1


class ZipSpool:
    """Where one process keeps the archives it is reading. Used on its event loop alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept = 0

    @contextmanager
    def room(self) -> Iterator[None]:
        """Raises Overloaded where as many are kept as may be."""
        if self._kept >= AT_ONCE:
            raise overloaded()
        self._kept += 1
        try:
            yield
        finally:
            self._kept -= 1

    def open(self) -> IO[bytes]:
        """A file without a name: a process that dies leaves nothing. Blocks; raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._folder)


async def read_zip(
    request: Request, slot: UploadSlot, limits: BatchLimits, spool: ZipSpool, take: Take
) -> None:
    """Hand each image of a zip to `take`, in the order of its directory.

    `take` owns the bytes, which `slot` holds, and lets them go. Raises MalformedBody,
    BatchTooLarge, Overloaded, UploadTooSlow, Unavailable, and ClientDisconnect.
    """
    with spool.room():
        with slot.paused():
            file = await _blocking(spool.open)
        try:
            await _keep(request, slot, limits, file)
            entries = await _blocking(partial(ZipEntries, file, limits))
            for entry in entries.wanted:
                image = await _blocking(partial(entries.read, entry))
                slot.keep(len(image.data))
                await take(image)
        finally:
            await asyncio.to_thread(file.close)


async def _keep(request: Request, slot: UploadSlot, limits: BatchLimits, file: IO[bytes]) -> None:
    piece = bytearray()

    async def write() -> None:
        with slot.paused():
            await _blocking(partial(file.write, piece))
        slot.let_go(len(piece))
        piece.clear()

    async def feed(chunk: bytes) -> None:
        piece.extend(chunk)
        if len(piece) >= PIECE:
            await write()

    await read_body(request, slot, limits, feed)
    await write()


class ZipEntries:
    """An archive's images. Everything here blocks."""

    def __init__(self, file: IO[bytes], limits: BatchLimits) -> None:
        """Raises MalformedBody, and BatchTooLarge where it holds more than a batch may."""
        self._limits = limits
        try:
            self._archive = zipfile.ZipFile(_Bounded(file))
        except OSError:
            raise
        except Exception as error:
            raise MalformedBody("The body is not a zip that can be read.") from error
        infos = self._archive.infolist()
        self.wanted = [info for info in infos if not _skipped(info)]
        check_count(len(self.wanted), limits.items)
        # Entries that share their bytes are how little becomes a lot.
        if sum(info.compress_size for info in infos) > file.seek(0, os.SEEK_END):
            raise MalformedBody("The zip's entries overlap.")
        # `zipfile` unpacks no more of an entry than it claims; if that is too little, it is broken.
        most = limits.image_bytes + STEP
        if sum(min(info.file_size, most) for info in self.wanted) > limits.bytes_:
            raise too_many_bytes(limits)

    def read(self, info: zipfile.ZipInfo) -> BatchImage:
        """One image, or why there is none."""
        image = BatchImage(display_name(info.filename))
        if info.flag_bits & _ENCRYPTED:
            image.error = InvalidImage("The zip's entry is encrypted.")
            return image
        if info.compress_type not in _METHODS:
            image.error = InvalidImage("The zip's entry is neither stored nor deflated.")
            return image
        digest = hashlib.sha256()
        try:
            with self._archive.open(info) as entry:
                while image.error is None and (part := entry.read(STEP)):
                    if len(image.data) + len(part) > self._limits.image_bytes:
                        image.error = too_large(self._limits.image_bytes)
                    else:
                        image.data += part
                        digest.update(part)
        except OSError:
            raise
        except Exception:  # noqa: BLE001 - a broken entry makes it raise anything
            image.error = InvalidImage("The zip's entry is broken.")
        if image.error is not None:
            image.data = bytearray()
        elif image.data:
            image.image_hash = digest.hexdigest()
        else:
            image.error = empty()
        return image


class _Bounded:
    """A file for `zipfile`, which would go and read as far as the archive tells it to."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY:
            raise zipfile.BadZipFile("the directory is too large")
        # What is read to its end lies behind the directory, and the format bounds it.
        return self._file.read(size if size >= 0 else MAX_DIRECTORY)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET and not 0 <= offset <= self._size:
            raise zipfile.BadZipFile("something is said to lie outside of the archive")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


def _skipped(info: zipfile.ZipInfo) -> bool:
    """Folders, and what systems leave in archives: nobody means these as images."""
    # Not `is_dir`, which Python 3.11 cannot say of an entry without a name. And what Windows
    # PowerShell packs has backslashes.
    *folders, name = info.filename.replace("\\", "/").split("/")
    return bool(folders and not name) or any(_hidden(part) for part in (*folders, name))


def _hidden(part: str) -> bool:
    return part == "__MACOSX" or (part.startswith(".") and part not in (".", ".."))


async def _blocking(work: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        log.error("the batch cannot be kept", reason=f"{type(error).__name__}: {error.strerror}")
        raise Unavailable("There is no room to keep the batch while it is read.") from error
