"""Bundles that lie in a bucket, as folders of this machine. Everything here blocks.

A bundle's folder is named by the digest of its `SHA256SUMS`, so what is in it never changes, and
what is there already and has the right digest is not fetched again. A file is fetched beside its
place, checked, synced and renamed: its name leads to all of it or to nothing. So any number of
processes may share the cache; of the weights, one fetches and the others wait.
"""

import fcntl
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

import structlog

from core.bundles.bundle import (
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

SMALL_FILE_BYTES = 4 * 1024 * 1024  # of the manifest, of the labels and of the sums, each at most
FETCH_SECONDS = 900.0  # for a model's weights, and to wait for another process that fetches them
LOCK_POLL_SECONDS = 0.2
CLOSE_SECONDS = 3.0  # for what is being fetched to be given up and cleared away
PART, LOCK = f"{MODEL_FILE}.part", f"{MODEL_FILE}.lock"


class Sink(Protocol):
    """Where fetched bytes go. `write` raises BundleError to end the fetching."""

    def write(self, data: bytes, /) -> int: ...

    def tell(self) -> int: ...


class BundleObjects(Protocol):
    """The files of bundles in buckets. Each call raises BundleUnavailable that names the file."""

    def read(self, place: BucketFolder, name: str, most: int) -> bytes:
        """A file of at most `most` bytes; BundleError where it has more."""

    def fetch(self, place: BucketFolder, name: str, sink: Sink) -> None:
        """Write a file of any size to `sink`, bit by bit."""

    def close(self) -> None: ...


class BundleCache:
    """Folders under `folder`. Threads may share it."""

    def __init__(self, folder: Path, objects: BundleObjects) -> None:
        self._folder = folder.absolute()
        self._objects = objects
        self._stopped = threading.Event()
        self._fetching = 0
        self._fewer = threading.Condition()  # than there were, that are being fetched

    def manifest(self, place: BucketFolder) -> Bundle:
        """The bundle at `place` without its weights.

        Raises BundleUnavailable where it cannot be read for now, BundleError where it is wrong.
        """
        text = self._objects.read(place, SUMS_FILE, SMALL_FILE_BYTES)
        sums = parse_sums(text, f"{place}/{SUMS_FILE}")
        home = self._folder / digest_of(sums)
        with _disk(home):
            _make_folder(home)
            for name in (name for name in sums if name != MODEL_FILE):
                if not _agrees(home / name, sums[name]):
                    data = self._objects.read(place, name, SMALL_FILE_BYTES)
                    if hashlib.sha256(data).hexdigest() != sums[name]:
                        raise _differs(place, name)
                    _keep(home / name, data)
            ours = sums_text(sums).encode()
            if not _agrees(home / SUMS_FILE, hashlib.sha256(ours).hexdigest()):
                _keep(home / SUMS_FILE, ours)
        try:
            return read_bundle(home)
        except BundleError as error:
            raise BundleError(f"{place}: {error.detail}") from error

    def weights(self, place: BucketFolder, bundle: Bundle) -> None:
        """See to it that the folder of `bundle`, which came from `place`, has its weights.

        Raises as `manifest` does.
        """
        sums = recorded_sums(bundle.folder)
        if sums is None:
            raise BundleError(f"{bundle.folder} is no folder of this cache any more.")
        path, digest = bundle.folder / MODEL_FILE, sums[MODEL_FILE]
        with _disk(bundle.folder):
            if _agrees(path, digest):
                return
            until = time.monotonic() + FETCH_SECONDS
            with self._alone(bundle.folder / LOCK, place, until):
                if not _agrees(path, digest):  # another may have fetched it meanwhile
                    self._fetch(place, path, digest, until)

    def close(self) -> None:
        """Stop what is being fetched, in whichever thread; fetch no weights any more. Blocks.

        What was fetched in part has been deleted then, unless the disk takes too long over it.
        """
        self._stopped.set()
        self._objects.close()
        with self._fewer:
            self._fewer.wait_for(lambda: not self._fetching, CLOSE_SECONDS)

    def _fetch(self, place: BucketFolder, path: Path, digest: str, until: float) -> None:
        with self._fewer:
            self._fetching += 1
        try:
            self._fetch_whole(place, path, digest, until)
        finally:
            with self._fewer:
                self._fetching -= 1
                self._fewer.notify_all()

    def _fetch_whole(self, place: BucketFolder, path: Path, digest: str, until: float) -> None:
        part, began = path.with_name(PART), time.monotonic()
        try:
            with part.open("wb") as file:
                self._objects.fetch(place, path.name, _Guarded(file, place, until, self._stopped))
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            if not _agrees(part, digest):
                raise _differs(place, path.name)
            part.replace(path)
        except BaseException:
            # A container's disk may be its memory: half a model is a lot of it.
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
        milliseconds = round(1000 * (time.monotonic() - began))
        log.info("bundle fetched", uri=str(place), bytes=size, milliseconds=milliseconds)

    @contextmanager
    def _alone(self, lock: Path, place: BucketFolder, until: float) -> Iterator[None]:
        """Keep other processes and threads out. The kernel drops the lock of who dies."""
        with lock.open("ab") as file:
            while True:
                _check(place, until, self._stopped)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._stopped.wait(LOCK_POLL_SECONDS)
            yield


class _Guarded:
    """A file that refuses more once it makes no sense to go on, and says why."""

    def __init__(
        self, file: BinaryIO, place: BucketFolder, until: float, stopped: threading.Event
    ) -> None:
        self._file = file
        self._place = place
        self._until = until
        self._stopped = stopped

    def write(self, data: bytes, /) -> int:
        _check(self._place, self._until, self._stopped)
        # Here, since a full disk is no fault of whoever brings the bytes.
        with _disk(Path(self._file.name)):
            return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


def _check(place: BucketFolder, until: float, stopped: threading.Event) -> None:
    if stopped.is_set():
        raise BundleUnavailable(f"{place} is not fetched: the process stops.")
    if time.monotonic() > until:
        raise BundleUnavailable(f"{place} did not come within {FETCH_SECONDS:g} s.")


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(f"The model cache {path} cannot be used: {error.strerror}.") from error


def _differs(place: BucketFolder, name: str) -> BundleError:
    return BundleError(f"{place}: {name} differs from {SUMS_FILE}.")


def _agrees(path: Path, recorded: str) -> bool:
    try:
        return file_sum(path) == recorded
    except FileNotFoundError:
        return False


def _make_folder(path: Path) -> None:
    """Create `path` and what is above it, DATA_DIR perhaps, for its owner alone."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def _keep(path: Path, data: bytes) -> None:
    """Write a small file, by a draft of its own: others may be writing the same one."""
    write_whole(data, path.with_name(f"{path.name}.{secrets.token_hex(8)}"), path)
    sync_folder(path.parent)
