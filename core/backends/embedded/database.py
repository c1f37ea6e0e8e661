"""SQLite for an event loop: one thread writes, one thread reads, and the loop waits for no disk.

A write is a plain function of a connection. The writer takes all waiting functions, runs them in
one transaction, each in a savepoint, and commits once: concurrent callers share one fsync. Reads
have a separate connection, which in WAL mode never waits for the writer.
"""

import asyncio
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import structlog

from core.disk_space import free_bytes, is_full
from core.errors import Unavailable, disk_full

log = structlog.get_logger(__name__)

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]

BUSY_SECONDS = 5.0  # wait for the lock of another process; then the caller gets Unavailable
_LEAST_FREE = 1024 * 1024  # bytes. With less, I/O errors of SQLite count as a full disk
MAX_BATCH = 256  # functions in one transaction, so that none takes too long
# Pages of 4 KB in the log before SQLite copies them to the database file; its default is 1,000. A
# page that changes often, such as that of an index, is copied once for all its changes.
CHECKPOINT_PAGES = 4000


@dataclass(frozen=True)
class Schema:
    """`statements` create the schema in an empty file; `version` is its number.

    `upgrades` has the statements that lead from an earlier version to the next one. A file of a
    version without an upgrade, or of a newer version, is refused.
    """

    version: int
    statements: Sequence[str]
    upgrades: Mapping[int, Sequence[str]] = field(default_factory=dict)

    def steps_from(self, found: int) -> Sequence[str] | None:
        """The statements that bring a file of version `found` to this schema; None if none do."""
        if found == 0:
            return self.statements
        path = range(found, self.version)
        if found > self.version or any(version not in self.upgrades for version in path):
            return None
        return [statement for version in path for statement in self.upgrades[version]]


@dataclass(slots=True, eq=False)
class _Call:
    operation: Operation[Any]
    durable: bool
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def run(self, connection: sqlite3.Connection) -> None:
        result = self.operation(connection)
        if isinstance(result, sqlite3.Cursor):
            # A cursor must not leave this thread: freed on another thread, it would reset its
            # statement, which this thread may be running for another caller at that moment.
            result.close()
            result = None
        self.result = result

    def resolve(self) -> None:
        if self.future.done():  # the caller was cancelled
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class Database:
    """One SQLite file. Open with `await Database.open(...)`, on the loop that will use it."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self._closed = False
        self._writer = _Writer(path, schema)
        self._reader = _Reader(path, schema)

    @classmethod
    async def open(cls, path: Path, schema: Schema) -> "Database":
        """Create or open the file. Raises Unavailable; safe while other processes do the same."""
        database = cls(path, schema)
        try:
            await database._writer.start()  # first, because it makes the schema
            await database._reader.start()
        except BaseException:
            await database.close()
            raise
        return database

    async def write(self, operation: Operation[T], *, durable: bool) -> T:
        """Run `operation` in a transaction; its result, after the commit.

        A `durable` commit survives a power loss: the fsync comes before the answer. Other commits
        survive the death of every process, but a power loss may undo the newest of them.
        """
        return await self._submit(self._writer, operation, durable)

    async def read(self, operation: Operation[T]) -> T:
        """Run `operation` on the committed state; its result."""
        return await self._submit(self._reader, operation, False)

    async def close(self) -> None:
        """Finish the submitted operations, then close both connections and end both threads."""
        self._closed = True
        await self._writer.stop()
        await self._reader.stop()

    async def _submit(self, thread: "_DatabaseThread", operation: Operation[T], durable: bool) -> T:
        if self._closed:
            raise Unavailable(f"The {self.path.stem} database is closed.")
        future: asyncio.Future[T] = thread.loop.create_future()
        thread.calls.put(_Call(operation, durable, future))
        return await future


class _DatabaseThread:
    """A thread with a connection. It runs batches of calls, and ends after the call None."""

    role = ""

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self.schema = schema
        self.calls: SimpleQueue[_Call | None] = SimpleQueue()
        self.loop: asyncio.AbstractEventLoop
        self._ended: asyncio.Future[None] | None = None
        # A daemon, so that a process that does not close the database can still end.
        self._thread = threading.Thread(
            target=self._main, name=f"{path.stem}-{self.role}", daemon=True
        )

    async def start(self) -> None:
        """Open the connection. Raises Unavailable."""
        self.loop = asyncio.get_running_loop()
        self._ended = self.loop.create_future()
        self._opened: asyncio.Future[None] = self.loop.create_future()
        self._thread.start()
        await self._opened

    async def stop(self) -> None:
        if self._ended is None:
            return
        self.calls.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()

    def connect(self) -> sqlite3.Connection:
        raise NotImplementedError

    def run(self, connection: sqlite3.Connection, batch: list[_Call]) -> None:
        """Run the calls; set the result or the error of each."""
        raise NotImplementedError

    def _main(self) -> None:
        try:
            connection = self.connect()
        except Exception as error:  # noqa: BLE001 - the caller of `start` gets it
            self._run_in_loop(_fail_future, self._opened, translated(error, self.path))
            self._run_in_loop(_finish_future, self._ended)
            return
        self._run_in_loop(_finish_future, self._opened)
        try:
            while batch := self._next_batch():
                try:
                    self.run(connection, batch)
                except Exception as error:  # noqa: BLE001 - the callers get it
                    for call in batch:
                        call.error = translated(error, self.path)
                self._run_in_loop(_resolve_all, batch)
        finally:
            connection.close()
            self._run_in_loop(_finish_future, self._ended)

    def _next_batch(self) -> list[_Call]:
        """The waiting calls, at least one; empty at the end."""
        batch: list[_Call] = []
        call = self.calls.get()
        while call is not None:
            batch.append(call)
            if len(batch) == MAX_BATCH:
                return batch
            try:
                call = self.calls.get_nowait()
            except Empty:
                return batch
        if batch:
            self.calls.put(None)  # run these calls first, then end
        return batch

    def _run_in_loop(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed, so no caller waits
            log.debug("event loop closed before its database", path=str(self.path))


class _Writer(_DatabaseThread):
    role = "writer"
    _full = True

    def connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # `_begin` waits for the write lock, in shorter steps than SQLite does.
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        try:
            _retry_while_locked(lambda: connection.execute("PRAGMA journal_mode = WAL"))
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES:d}")
            self._make_schema(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_schema(self, connection: sqlite3.Connection) -> None:
        _begin(connection)
        try:
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            steps = self.schema.steps_from(found)
            if steps is None:
                raise Unavailable(
                    f"{self.path} has schema version {found}, this release needs "
                    f"{self.schema.version}.",
                    retry_after=None,
                )
            for statement in steps:
                connection.execute(statement)
            if found != self.schema.version:
                connection.execute(f"PRAGMA user_version = {self.schema.version:d}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def run(self, connection: sqlite3.Connection, batch: list[_Call]) -> None:
        full = any(call.durable for call in batch)
        if full != self._full:
            # In WAL mode, FULL adds one fsync of the log to the commit, which also makes earlier
            # NORMAL commits durable. Each transaction may use another mode.
            connection.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
            self._full = full
        _begin(connection)
        try:
            if len(batch) == 1:
                # No savepoint: if the call fails, its transaction is rolled back.
                batch[0].run(connection)
            else:
                for call in batch:
                    self._run_one(connection, call)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _run_one(self, connection: sqlite3.Connection, call: _Call) -> None:
        connection.execute("SAVEPOINT call")
        try:
            call.run(connection)
        except Exception as error:
            if not connection.in_transaction:
                raise  # SQLite has rolled back (disk full, I/O error): all calls of the batch fail
            connection.execute("ROLLBACK TO call")
            call.error = translated(error, self.path)
        connection.execute("RELEASE call")


class _Reader(_DatabaseThread):
    role = "reader"

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        connection.execute("PRAGMA query_only = ON")
        return connection

    def run(self, connection: sqlite3.Connection, batch: list[_Call]) -> None:
        # One snapshot for the batch, from after its last call was submitted.
        connection.execute("BEGIN")
        try:
            for call in batch:
                try:
                    call.run(connection)
                except Exception as error:  # noqa: BLE001 - the caller gets it
                    call.error = translated(error, self.path)
        finally:
            if connection.in_transaction:
                connection.execute("COMMIT")


def translated(error: BaseException, path: Path) -> BaseException:
    """`error` as callers may see it: Unavailable for an error of SQLite, otherwise unchanged."""
    if not isinstance(error, sqlite3.Error | OSError):
        return error
    log.error("database failed", database=path.stem, reason=f"{type(error).__name__}: {error}")
    unavailable = (
        disk_full()
        if _is_full(error, path)
        else Unavailable(f"The {path.stem} database does not answer.")
    )
    unavailable.__cause__ = error
    return unavailable


def _is_full(error: sqlite3.Error | OSError, path: Path) -> bool:
    """Whether the disk is full. SQLite may report that as an I/O error."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    if code == sqlite3.SQLITE_FULL or is_full(error):
        return True
    if code not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return False
    with suppress(OSError):
        return free_bytes(path.parent) < _LEAST_FREE
    return False


def _begin(connection: sqlite3.Connection) -> None:
    _retry_while_locked(lambda: connection.execute("BEGIN IMMEDIATE"))


def _retry_while_locked(step: Callable[[], object]) -> None:
    """Run `step`, and repeat it while another process holds the lock.

    SQLite's busy handler sleeps 1, 2, 5, 10... 100 ms, and does not wait at all when a file changes
    to WAL mode. Transactions here take well below 1 ms.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            step()
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.0001, 0.0005))
        else:
            return


def _resolve_all(batch: list[_Call]) -> None:
    for call in batch:
        call.resolve()


def _finish_future(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _fail_future(future: "asyncio.Future[None]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
