"""Local copies of bundles that are stored in a bucket. All functions block.

A bundle's folder is named by the digest of its `SHA256SUMS`, so its content never changes, and a
file that has the right digest is not fetched again. A file is fetched to a temporary file, checked,
synced and renamed, so its name leads to all of it or to nothing. Any number of processes may share
the cache: one fetches the weights and the others wait.
"""

import fcntl
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import structlog

from core.bundles.bundle import (
    CARD_FILE,
    MAX_CARD_BYTES,
    MODEL_FILE,
    SUMS_FILE,
    Bundle,
    digest_of,
    file_sum,
    parse_sums,
    read_bundle,
    recorded_sums,
    sums_text,
)
from core.bundles.location import BucketFolder
from core.durable_files import sync_folder, write_whole
from core.errors import BundleError, BundleUnavailable

log = structlog.get_logger(__name__)

SMALL_FILE_BYTES = 4 * 1024 * 1024  # the limit for each file but the weights
FETCH_SECONDS = 900.0  # time limit for the weights, with the wait for another process
LOCK_POLL_SECONDS = 0.2
CLOSE_SECONDS = 3.0  # time limit for fetches to stop and delete their temporary files
PART, LOCK = f"{MODEL_FILE}.part", f"{MODEL_FILE}.lock"


class Sink(Protocol):
    """The target of a fetch. `write` raises BundleError to stop it."""

    def write(self, data: bytes, /) -> int: ...

    def tell(self) -> int: ...


class BundleObjects(Protocol):
    """Reads files of bundles in buckets. Methods raise BundleUnavailable that names the file."""

    def read(self, place: BucketFolder, name: str, most: int) -> bytes:
        """The content of a file. Raises BundleError if it has more than `most` bytes."""

    def fetch(self, place: BucketFolder, name: str, sink: Sink) -> None:
        """Write a file of any size to `sink` in chunks."""

    def close(self) -> None: ...


class BundleCache:
    """Bundles in subfolders of `folder`. Threads may share it."""

    def __init__(self, folder: Path, objects: BundleObjects) -> None:
        self._folder = folder.absolute()
        self._objects = objects
        self._stopped = threading.Event()
        self._fetches = 0
        self._fetch_ended = threading.Condition()

    def manifest(self, place: BucketFolder) -> Bundle:
        """The bundle at `place` without its weights.

        Raises BundleUnavailable if it cannot be read now, and BundleError if it is invalid.
        """
        text = self._objects.read(place, SUMS_FILE, SMALL_FILE_BYTES)
        sums = parse_sums(text, f"{place}/{SUMS_FILE}")
        home = self._folder / digest_of(sums)
        with _disk_errors(home):
            _make_folder(home)
            for name in (name for name in sums if name != MODEL_FILE):
                if not _matches(home / name, sums[name]):
                    data = self._objects.read(place, name, SMALL_FILE_BYTES)
                    if hashlib.sha256(data).hexdigest() != sums[name]:
                        raise _mismatch(place, name)
                    _store(home / name, data)
            listed = sums_text(sums).encode()
            if not _matches(home / SUMS_FILE, hashlib.sha256(listed).hexdigest()):
                _store(home / SUMS_FILE, listed)
        try:
            return read_bundle(home)
        except BundleError as error:
            raise BundleError(f"{place}: {error.detail}") from error

    def card(self, place: BucketFolder, bundle: Bundle) -> None:
        """Fetch the model card of `bundle`, which came from `place`, into its folder.

        The card decides no answer, so it has no checksum. If there is none, or if it cannot be
        read, that is only logged.
        """
        path = bundle.folder / CARD_FILE
        try:
            data = self._objects.read(place, CARD_FILE, MAX_CARD_BYTES)
            with _disk_errors(path):
                _store(path, data)
        except BundleError as error:
            log.info("model card not fetched", uri=str(place), reason=error.detail)

    def weights(self, place: BucketFolder, bundle: Bundle) -> None:
        """Fetch the weights of `bundle`, which came from `place`, into its folder.

        Does nothing if they are there and undamaged. Raises the errors of `manifest`.
        """
        sums = recorded_sums(bundle.folder)
        if sums is None:
            raise BundleError(f"{bundle.folder} is missing from the model cache.")
        path, digest = bundle.folder / MODEL_FILE, sums[MODEL_FILE]
        with _disk_errors(bundle.folder):
            if _matches(path, digest):
                return
            until = time.monotonic() + FETCH_SECONDS
            with self._fetch_lock(bundle.folder / LOCK, place, until):
                if not _matches(path, digest):  # another process may have fetched it
                    self._fetch(place, path, digest, until)

    def close(self) -> None:
        """Stop the fetches of all threads, and begin no more. Blocks up to `CLOSE_SECONDS`.

        The temporary files are deleted by then, unless the disk is slow.
        """
        self._stopped.set()
        self._objects.close()
        with self._fetch_ended:
            self._fetch_ended.wait_for(lambda: not self._fetches, CLOSE_SECONDS)

    def _fetch(self, place: BucketFolder, path: Path, digest: str, until: float) -> None:
        with self._fetch_ended:
            self._fetches += 1
        try:
            self._fetch_weights(place, path, digest, until)
        finally:
            with self._fetch_ended:
                self._fetches -= 1
                self._fetch_ended.notify_all()

    def _fetch_weights(self, place: BucketFolder, path: Path, digest: str, until: float) -> None:
        part, began = path.with_name(PART), time.monotonic()
        try:
            with part.open("wb") as file:
                self._objects.fetch(
                    place, path.name, _StoppableFile(file, place, until, self._stopped)
                )
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            if not _matches(part, digest):
                raise _mismatch(place, path.name)
            part.replace(path)
        except BaseException:
            # In a container the disk may be memory, of which half a model takes a lot.
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
        milliseconds = round(1000 * (time.monotonic() - began))
        log.info("bundle fetched", uri=str(place), bytes=size, milliseconds=milliseconds)

    @contextmanager
    def _fetch_lock(self, lock: Path, place: BucketFolder, until: float) -> Iterator[None]:
        """Hold the lock on the weights. The kernel releases the lock of a process that dies."""
        with lock.open("ab") as file:
            while True:
                _check(place, until, self._stopped)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._stopped.wait(LOCK_POLL_SECONDS)
            yield


@dataclass(frozen=True, slots=True)
class _StoppableFile:
    """A file that refuses writes after the deadline, or when the process stops."""

    file: BinaryIO
    place: BucketFolder
    until: float
    stopped: threading.Event

    def write(self, data: bytes, /) -> int:
        _check(self.place, self.until, self.stopped)
        # Translated here, so that a full disk is not reported as a failure of the storage.
        with _disk_errors(Path(self.file.name)):
            return self.file.write(data)

    def tell(self) -> int:
        return self.file.tell()


def _check(place: BucketFolder, until: float, stopped: threading.Event) -> None:
    if stopped.is_set():
        raise BundleUnavailable(f"{place} is not fetched because the process stops.")
    if time.monotonic() > until:
        raise BundleUnavailable(f"{place} was not fetched within {FETCH_SECONDS:g} s.")


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(f"The model cache {path} cannot be used: {error.strerror}.") from error


def _mismatch(place: BucketFolder, name: str) -> BundleError:
    return BundleError(f"{place}: {name} differs from {SUMS_FILE}.")


def _matches(path: Path, recorded: str) -> bool:
    try:
        return file_sum(path) == recorded
    except FileNotFoundError:
        return False


def _make_folder(path: Path) -> None:
    """Create `path` and its parents, possibly DATA_DIR, with mode 0700."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def _store(path: Path, data: bytes) -> None:
    """Write a small file. The temporary name is random, as other processes may write it too."""
    write_whole(data, path.with_name(f"{path.name}.{secrets.token_hex(8)}"), path)
    sync_folder(path.parent)
