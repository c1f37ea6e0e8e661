"""The one supervisor of a data folder: its lock, its log, its end, and what it leaves behind.

The kernel drops the lock when its holder dies, however it dies, so a stale file misleads nobody.
"""

import fcntl
import logging
import logging.handlers
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

LOG_BYTES = 10_000_000  # of the log; as much again is kept of what came before
# Whatever Glimpse writes into a data folder. Nothing else is ever deleted from one.
_OURS = (
    *("records.db*", "queue.db*", "keys.db*", "webhooks.db*", "queue.lock", "blobs", "spool"),
    *("link.key", "key.secret", "model-cache"),
    *("emulators", "glimpse.log*"),
)
_CLAIM_SECONDS = 1.0  # as long as a look at the lock may hold it


class FolderRefused(Exception):
    """What was to be done with a data folder is not done; the text says why, for whoever asked."""


class AlreadyRunning(FolderRefused):
    """Another supervisor works in this folder; the text says so."""


class DoesNotStop(FolderRefused):
    """The supervisor still runs after all the time that it may take."""


class UnusableFolder(FolderRefused):
    """The data folder cannot be made, or not be written; the text says why."""


def pid_file(data_dir: Path) -> Path:
    return data_dir / "glimpse.pid"


def log_file(data_dir: Path) -> Path:
    return data_dir / "glimpse.log"


@contextmanager
def claimed(data_dir: Path) -> Iterator[None]:
    """Be the folder's one supervisor, whose process id others find.

    Raises AlreadyRunning, UnusableFolder.
    """
    with _locked(data_dir) as file:
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)


def _locked(data_dir: Path) -> TextIO:
    """The pid file, with a lock on it that ends when it is closed. Raises as `claimed`."""
    deadline = time.monotonic() + _CLAIM_SECONDS
    while True:
        with _usable(data_dir):
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = pid_file(data_dir).open("a+")
        # A purge deletes the file that it holds: a lock on that one would be seen by nobody.
        if _lock(file.fileno(), fcntl.LOCK_EX) and _is_at(pid_file(data_dir), file):
            return file
        with file:
            if time.monotonic() > deadline:
                file.seek(0)
                raise AlreadyRunning(
                    f"Glimpse runs in {data_dir.resolve()} already (process "
                    f"{file.read().strip()}). End it with make stop, or set DATA_DIR."
                )
        time.sleep(0.05)


def _is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def running(data_dir: Path) -> int | None:
    """The process id of the folder's supervisor, if one lives. Raises UnusableFolder."""
    with _usable(data_dir):
        try:
            file = pid_file(data_dir).open()
        except FileNotFoundError:
            return None
    with file:
        if _lock(file.fileno(), fcntl.LOCK_SH):
            return None
        text = file.read().strip()
    return int(text) if text else None


def stop(data_dir: Path, patience: float) -> bool:
    """End the folder's supervisor and with it all it runs; False if there was none.

    Raises UnusableFolder, and DoesNotStop after `patience` seconds.
    """
    process = running(data_dir)
    if process is None:
        return False
    os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while running(data_dir) == process:
        if time.monotonic() > deadline:
            raise DoesNotStop(f"Process {process} still runs after {patience:g} s.")
        time.sleep(0.1)
    return True


def purge(data_dir: Path) -> list[str]:
    """Delete all that Glimpse wrote into the folder, and the folder if nothing else is in it.

    Returns the names of what is not ours and therefore stays. Raises AlreadyRunning.
    """
    if not data_dir.is_dir():
        return []
    with claimed(data_dir):
        for pattern in _OURS:
            for path in data_dir.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        pid_file(data_dir).unlink()
    left = sorted(path.name for path in data_dir.iterdir())
    if not left and not data_dir.is_symlink():
        data_dir.rmdir()
    return left


class _Log(logging.handlers.RotatingFileHandler):
    """A full disk costs lines, which whoever watches sees all the same, and nothing else."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say nothing: by default each line that is lost is a traceback on standard error."""


@contextmanager
def opened_log(data_dir: Path) -> Iterator[Callable[[str], None]]:
    """Writes a line to the log that `make logs` shows; it is bounded in size.

    Raises UnusableFolder.
    """
    with _usable(data_dir):
        handler = _Log(
            log_file(data_dir),
            maxBytes=LOG_BYTES,
            backupCount=1,
            encoding="utf-8",
            errors="replace",
        )
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.Logger("glimpse")
    logger.addHandler(handler)
    try:
        yield logger.info
    finally:
        with suppress(OSError):
            handler.close()


@contextmanager
def _usable(data_dir: Path) -> Iterator[None]:
    """Raises UnusableFolder where what is done in the folder cannot be."""
    try:
        yield
    except OSError as error:
        raise UnusableFolder(
            f"DATA_DIR={data_dir} cannot be used: {error.filename}: {error.strerror}."
        ) from error


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
