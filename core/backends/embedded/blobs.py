"""Blobs as files: `blobs/{tenant}/{first two hex digits}/{image_hash}`.

A name either leads to all of a blob's bytes, on disk, or to nothing: bytes are written aside,
fsynced, and renamed into place.
"""

import asyncio
import errno
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from core.backends.links import LinkSigner
from core.clock import Clock, utc_now
from core.domain.records import IMAGE_HASH, TENANT
from core.durable_files import sync_folder, write_whole
from core.errors import NotFound, Unavailable

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 8
DRAFT = ".draft-"
ABANDONED_SECONDS = 3600.0  # no live process takes an hour to write one upload


class FileBlobStore:
    """`core.ports.BlobStore` on a folder that several processes may share."""

    def __init__(self, folder: Path, links: LinkSigner, clock: Clock = utc_now) -> None:
        self._folder = folder.absolute()  # as a process that works elsewhere needs it
        self._links = links
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")
        self._closed = False

    async def put(self, name: str, data: bytes | bytearray, content_type: str) -> None:
        """Store `data`, on disk before this returns; nothing happens where it already is, whole.

        The content type is not kept: readers learn it from the bytes.
        """
        try:
            await self._run(_put, self._folder, self._path(name), data)
        except FileNotFoundError as error:  # the folder was taken away meanwhile
            raise Unavailable("The image storage does not answer.") from error

    async def get(self, name: str) -> bytes:
        try:
            return await self._run(self._path(name).read_bytes)
        except FileNotFoundError:
            raise NotFound("There is no such image.") from None

    def file(self, name: str) -> Path | None:
        return self._path(name)

    async def exists(self, name: str) -> bool:
        return await self._run(_exists, self._folder, self._path(name))

    async def delete(self, name: str) -> bool:
        try:
            await self._run(_delete, self._path(name))
        except FileNotFoundError:
            return False
        return True

    async def signed_url(self, name: str, expires_in: timedelta) -> str:
        self._path(name)
        return self._links.url(name, self._clock() + expires_in)

    async def ping(self) -> None:
        await self._run(_check, self._folder)

    async def remove_abandoned(self) -> int:
        """Delete what processes that died while writing left behind; the number deleted."""
        return await self._run(_remove_abandoned, self._folder, time.time() - ABANDONED_SECONDS)

    async def close(self) -> None:
        self._closed = True
        # Joins the threads, and so waits for what they write: off the loop.
        await asyncio.to_thread(self._threads.shutdown)

    def _path(self, name: str) -> Path:
        tenant, _, image_hash = name.partition("/")
        if not (TENANT.fullmatch(tenant) and IMAGE_HASH.fullmatch(image_hash)):
            raise NotFound("There is no such image.")
        return self._folder / tenant / image_hash[:2] / image_hash

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise Unavailable("The image storage is closed.")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))
        except FileNotFoundError:
            raise
        except OSError as error:
            log.error("image storage failed", reason=f"{type(error).__name__}: {error.strerror}")
            raise Unavailable("The image storage does not answer.") from error


def _exists(root: Path, path: Path) -> bool:
    if path.is_file():
        return True
    # Without its folder nothing is known about a blob, and absence has consequences.
    if not root.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "there is no folder of images")
    return False


def _put(root: Path, path: Path, data: bytes | bytearray) -> None:
    folder = path.parent
    if not _holds(path, data):
        _make_folder(folder, root)
        draft = folder / f"{DRAFT}{secrets.token_hex(8)}"
        # The name is the content's hash: replacing an equal blob changes nothing.
        write_whole(data, draft, path)
    # Also where the blob was there: whoever put it may not have got as far as this line.
    sync_folder(folder)


def _holds(path: Path, data: bytes | bytearray) -> bool:
    """Whether the file has these bytes: a disk may have lost some since."""
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except FileNotFoundError:
        return False


def _make_folder(folder: Path, root: Path) -> None:
    """Create `folder` so that a power loss cannot take it away from under its first blob."""
    if folder.is_dir():
        return
    if folder != root:
        _make_folder(folder.parent, root)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def _delete(path: Path) -> None:
    path.unlink()
    sync_folder(path.parent)


def _check(folder: Path) -> None:
    if not (folder.is_dir() and os.access(folder, os.R_OK | os.W_OK | os.X_OK)):
        raise PermissionError(0, "the folder cannot be written")


def _remove_abandoned(root: Path, before: float) -> int:
    removed = 0
    for draft in root.glob(f"*/*/{DRAFT}*"):
        try:
            if draft.stat().st_mtime < before:
                draft.unlink()
                removed += 1
        except FileNotFoundError:
            continue  # another process tidies as well
    return removed
