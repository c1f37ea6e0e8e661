"""Blobs as files, under their names: images are `blobs/{tenant}/{2 hex digits}/{image_hash}`.

A name leads to all bytes of a blob or to nothing: the store writes a temporary file, fsyncs it, and
renames it.
"""

import asyncio
import contextlib
import errno
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from core.backends.blob_names import MISSING, split_name
from core.backends.links import LinkSigner
from core.clock import Clock, utc_now
from core.disk_space import RESERVE, free_bytes, is_full
from core.domain.records import IMAGE_HASH
from core.durable_files import sync_folder, write_whole
from core.errors import NotFound, Unavailable, disk_full

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 8
# For a blob that is not found. The folder may come back between the first look and its check.
LOOKS = 2
TEMPORARY = ".draft-"  # prefix of temporary files
_FOLDERS = ("*/*", "*/thumbnails/*", "*/embeddings/*/*")  # folders that contain blobs
ABANDONED_SECONDS = 3600.0  # no live process takes an hour to write one upload


class FileBlobStore:
    """`core.ports.BlobStore` on a folder that several processes may share.

    Every method raises Unavailable if the folder itself is missing: that is no evidence that a blob
    is, and callers end records and delete data because a blob is missing.
    """

    def __init__(
        self,
        folder: Path,
        links: LinkSigner,
        clock: Clock = utc_now,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        """`free` returns the free bytes of a folder's disk."""
        self._free = free
        self._folder = folder.absolute()  # for processes with another working directory
        self._links = links
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")
        self._closed = False

    async def put(self, name: str, data: bytes | bytearray, content_type: str) -> None:
        """Store `data` on disk. Do nothing if the blob exists and is undamaged.

        The content type is not kept: readers detect it from the bytes.
        """
        await self._run(self._put, self._path(name), data)

    async def get(self, name: str) -> bytes:
        data = await self._run(_read, self._folder, self._path(name))
        if data is None:
            raise NotFound(MISSING)
        return data

    def file(self, name: str) -> Path | None:
        return self._path(name)

    async def exists(self, name: str) -> bool:
        return await self._run(_exists, self._folder, self._path(name))

    async def delete(self, name: str) -> bool:
        return await self._run(_delete, self._folder, self._path(name))

    async def signed_url(self, name: str, expires_in: timedelta) -> str:
        split_name(name)
        return self._links.url(name, self._clock() + expires_in)

    async def ping(self) -> None:
        def check() -> None:
            _check_access(self._folder)
            self._check_space()

        await self._run(check)

    async def free_bytes(self) -> int | None:
        return await self._run(self._free, self._folder)

    async def remove_abandoned(self) -> None:
        """Delete the temporary files of processes that died."""
        await self._run(_remove_abandoned, self._folder, time.time() - ABANDONED_SECONDS)

    async def close(self) -> None:
        self._closed = True
        # In a thread, because it waits for the writes that run.
        await asyncio.to_thread(self._threads.shutdown)

    def _put(self, path: Path, data: bytes | bytearray) -> None:
        self._check_space(len(data))
        _put(self._folder, path, data)

    def _check_space(self, size: int = 0) -> None:
        if self._free(self._folder) < RESERVE + size:
            raise disk_full()

    def _path(self, name: str) -> Path:
        folder, last = split_name(name)
        # Images and embeddings are many, so they are spread over 256 folders.
        spread = (last[:2],) if IMAGE_HASH.fullmatch(last) else ()
        return self._folder.joinpath(folder, *spread, last)

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise Unavailable("The image storage is closed.")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))
        except OSError as error:
            log.error("image storage failed", reason=f"{type(error).__name__}: {error.strerror}")
            if is_full(error):
                raise disk_full() from error
            raise Unavailable("The image storage does not answer.") from error


def _put(root: Path, path: Path, data: bytes | bytearray) -> None:
    folder = path.parent
    if not _holds(path, data):
        # Replacing an equal blob is harmless: the name is the hash of the content.
        try:
            write_whole(data, _temporary(folder), path)
        except FileNotFoundError:
            _make_folder(folder, root)
            write_whole(data, _temporary(folder), path)
    # Even if the blob exists: the process that wrote it may have died before this line.
    sync_folder(folder)


def _temporary(folder: Path) -> Path:
    # Unique, but no secret: another system call for random bytes would add nothing.
    return folder / f"{TEMPORARY}{random.getrandbits(64):016x}"


def _holds(path: Path, data: bytes | bytearray) -> bool:
    """Whether the file has exactly these bytes. A disk may have damaged them since."""
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except FileNotFoundError:
        return False


def _read(root: Path, path: Path) -> bytes | None:
    for _ in range(LOOKS):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            _check_exists(root)
    return None


def _exists(root: Path, path: Path) -> bool:
    for _ in range(LOOKS):
        if path.is_file():
            return True
        _check_exists(root)
    return False


def _delete(root: Path, path: Path) -> bool:
    for _ in range(LOOKS):
        try:
            path.unlink()
        except FileNotFoundError:
            _check_exists(root)
        else:
            sync_folder(path.parent)
            return True
    return False


def _check_exists(root: Path) -> None:
    if not root.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "the folder of the blobs is missing")


def _check_access(root: Path) -> None:
    if not (root.is_dir() and os.access(root, os.R_OK | os.W_OK | os.X_OK)):
        raise PermissionError(0, "the folder cannot be written")


def _make_folder(folder: Path, root: Path) -> None:
    """Create `folder` and its parents up to `root`, so that they survive a power loss."""
    if folder.is_dir():
        return
    if folder != root:
        _make_folder(folder.parent, root)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def _remove_abandoned(root: Path, before: float) -> None:
    for temporary in chain.from_iterable(root.glob(f"{each}/{TEMPORARY}*") for each in _FOLDERS):
        with contextlib.suppress(FileNotFoundError):  # another process removes them as well
            if temporary.stat().st_mtime < before:
                temporary.unlink()
