"""The lock that lets one supervisor use a data folder, and the files that Glimpse keeps there.

The kernel releases the lock when its holder ends for any reason, so a stale file has no effect.
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

from core.backends.data_folder import FILES, foreign_files, make_private

LOG_BYTES = 10_000_000  # size of the log. One older file of this size is kept as well
_ACQUIRE_SECONDS = 1.0  # longer than `holder` keeps its shared lock


class DataDirError(Exception):
    """An operation on a data folder failed. The text tells the operator why."""


class AlreadyRunning(DataDirError):
    """Another supervisor holds the lock."""


class StopTimeout(DataDirError):
    """The supervisor did not stop in time."""


class UnusableDataDir(DataDirError):
    """The data folder cannot be created or written to."""


def pid_file(data_dir: Path) -> Path:
    return data_dir / "glimpse.pid"


def log_file(data_dir: Path) -> Path:
    return data_dir / "glimpse.log"


@contextmanager
def held(data_dir: Path, url: str = "", way: str = "") -> Iterator[None]:
    """Hold the lock. Other processes find the id of this one, `url` and `way` in the pid file.

    With a `way`, of `compose.choice`, a program that replaces this process holds the lock too.
    Creates the folder, and makes it private. Raises AlreadyRunning or UnusableDataDir.
    """
    with _held(data_dir, url, way, create=True):
        yield


@contextmanager
def _held(data_dir: Path, url: str = "", way: str = "", *, create: bool) -> Iterator[None]:
    with _acquire(data_dir, create) as file:
        os.set_inheritable(file.fileno(), bool(way))
        file.truncate(0)
        file.write(f"{os.getpid()}\n{url}\n{way}\n")
        file.flush()
        yield
        file.truncate(0)


def _acquire(data_dir: Path, create: bool) -> TextIO:
    """The locked pid file. Closing it releases the lock. Raises as `held` does."""
    deadline = time.monotonic() + _ACQUIRE_SECONDS
    while True:
        with _usable(data_dir):
            if create:  # again in each turn: `purge` deletes the folder
                make_private(data_dir)
            file = pid_file(data_dir).open("a+")
        # `purge` deletes the file that it has locked. Other processes do not see a lock on that.
        if _lock(file.fileno(), fcntl.LOCK_EX) and _is_at(pid_file(data_dir), file):
            return file
        with file:
            if time.monotonic() > deadline:
                file.seek(0)
                raise AlreadyRunning(
                    f"Glimpse is already running in {data_dir.resolve()} (process "
                    f"{file.readline().strip()}). Stop it with make stop, or set DATA_DIR."
                )
        time.sleep(0.05)


def _is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def holder(data_dir: Path) -> int | None:
    """The id of the process that holds the lock, or None. Raises UnusableDataDir."""
    lines = _lines_of_holder(data_dir)
    return int(lines[0]) if lines else None


def holder_url(data_dir: Path) -> str:
    """The address of the API of the process that holds the lock, or an empty text.

    Raises UnusableDataDir.
    """
    return "".join(_lines_of_holder(data_dir)[1:2])


def holder_way(data_dir: Path) -> str:
    """The way in which the holder of the lock runs Glimpse, if it has said so.

    Raises UnusableDataDir.
    """
    return "".join(_lines_of_holder(data_dir)[2:3])


def _lines_of_holder(data_dir: Path) -> list[str]:
    """The lines that the process that holds the lock has written. Empty if none does."""
    with _usable(data_dir):
        try:
            file = pid_file(data_dir).open()
        except FileNotFoundError:
            return []
    with file:
        if _lock(file.fileno(), fcntl.LOCK_SH):
            return []
        return file.read().splitlines()


def stop_holder(data_dir: Path, seconds: float) -> bool:
    """Stop the supervisor that holds the lock. Returns False if there is none.

    Raises UnusableDataDir, and StopTimeout after `seconds`.
    """
    process = holder(data_dir)
    if process is None:
        return False
    with suppress(ProcessLookupError):  # it has ended, and its child processes hold the lock
        os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while holder(data_dir) == process:
        if time.monotonic() > deadline:
            raise StopTimeout(f"Process {process} is still running after {seconds:g} s.")
        time.sleep(0.1)
    return True


def purge(data_dir: Path) -> list[str]:
    """Delete what Glimpse wrote into the folder, and the folder if it is empty then.

    Returns the names of the other files, which remain. Raises AlreadyRunning.
    """
    if not data_dir.is_dir():
        return []
    with _held(data_dir, create=False):
        for pattern in FILES:
            for path in data_dir.glob(pattern):
                if path == pid_file(data_dir):
                    continue  # the last one, because it is locked
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        pid_file(data_dir).unlink()
    others = foreign_files(data_dir)
    if not others and not data_dir.is_symlink():
        data_dir.rmdir()
    return others


class _Log(logging.handlers.RotatingFileHandler):
    """Drops lines that it cannot write, for example to a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Write nothing: the default is a traceback on standard error for each lost line."""


@contextmanager
def opened_log(data_dir: Path) -> Iterator[Callable[[str], None]]:
    """Yields a function that writes a line to the log for `make logs`. Raises UnusableDataDir."""
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
    """Turns an OSError into UnusableDataDir."""
    try:
        yield
    except OSError as error:
        raise UnusableDataDir(
            f"DATA_DIR={data_dir} cannot be used: {error.filename}: {error.strerror}."
        ) from error


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
