"""SQLite for an event loop: one thread writes, one reads, and nobody else waits for a disk.

A write is a plain function of a connection. The writer takes every function that waits, runs them
in one transaction, each inside its own savepoint, and commits once: callers that arrive together
share one fsync. Reads have their own connection, which in WAL mode never waits for the writer.
"""

import asyncio
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import structlog

from core.errors import Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

BUSY_SECONDS = 5.0  # how long to wait for another process before the caller hears Unavailable
BATCH = 256  # most functions in one transaction, so that nobody waits behind an endless one


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
class _Job:
    work: Work[Any]
    durable: bool
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def run(self, connection: sqlite3.Connection) -> None:
        result = self.work(connection)
        if isinstance(result, sqlite3.Cursor):
            # It stays on this thread: let go of on another, it would reset its statement there,
            # which is shared with whoever runs the same one here at that moment.
            result.close()
            result = None
        self.result = result

    def settle(self) -> None:
        if self.future.done():  # the caller was cancelled and no longer asks
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

    async def write(self, work: Work[T], *, durable: bool) -> T:
        """Run `work` in a transaction and return what it returned, once that is committed.

        `durable` commits survive a power loss: an fsync comes before the answer. The others survive
        the death of every process but may be undone, newest first, by a power loss.
        """
        return await self._submit(self._writer, work, durable)

    async def read(self, work: Work[T]) -> T:
        """Run `work` on what is committed by now."""
        return await self._submit(self._reader, work, False)

    async def close(self) -> None:
        """Finish what was submitted, then close both connections and end both threads."""
        self._closed = True
        await self._writer.stop()
        await self._reader.stop()

    async def _submit(self, thread: "_DatabaseThread", work: Work[T], durable: bool) -> T:
        if self._closed:
            raise Unavailable(f"The {self.path.stem} database is closed.")
        future: asyncio.Future[T] = thread.loop.create_future()
        thread.jobs.put(_Job(work, durable, future))
        return await future


class _DatabaseThread:
    """A thread with a connection of its own, which runs batches of jobs until it meets None."""

    role = ""

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self.schema = schema
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.loop: asyncio.AbstractEventLoop
        self._ended: asyncio.Future[None] | None = None
        # A daemon, so that a process that dies without closing is not held up by it.
        self._thread = threading.Thread(
            target=self._main, name=f"{path.stem}-{self.role}", daemon=True
        )

    async def start(self) -> None:
        """Return when the connection is open."""
        self.loop = asyncio.get_running_loop()
        self._ended = self.loop.create_future()
        self._opened: asyncio.Future[None] = self.loop.create_future()
        self._thread.start()
        await self._opened

    async def stop(self) -> None:
        if self._ended is None:
            return
        self.jobs.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()

    def connect(self) -> sqlite3.Connection:
        raise NotImplementedError

    def run(self, connection: sqlite3.Connection, batch: list[_Job]) -> None:
        """Give each job its result or its error."""
        raise NotImplementedError

    def _main(self) -> None:
        try:
            connection = self.connect()
        except Exception as error:  # noqa: BLE001 - whatever it is, the opener must hear it
            self._call(_fail_future, self._opened, translated(error, self.path))
            self._call(_finish_future, self._ended)
            return
        self._call(_finish_future, self._opened)
        try:
            while batch := self._next_batch():
                try:
                    self.run(connection, batch)
                except Exception as error:  # noqa: BLE001 - it belongs to the callers
                    for job in batch:
                        job.error = translated(error, self.path)
                self._call(_settle_all, batch)
        finally:
            connection.close()
            self._call(_finish_future, self._ended)

    def _next_batch(self) -> list[_Job]:
        """Whatever waits, at least one; empty at the end."""
        batch: list[_Job] = []
        job = self.jobs.get()
        while job is not None:
            batch.append(job)
            if len(batch) == BATCH:
                return batch
            try:
                job = self.jobs.get_nowait()
            except Empty:
                return batch
        if batch:
            self.jobs.put(None)  # finish these first, then meet the end again
        return batch

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.debug("event loop closed before its database", path=str(self.path))


class _Writer(_DatabaseThread):
    role = "writer"
    _full = True

    def connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Waiting for the write lock is done in `_begin`, in shorter steps than SQLite's.
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        try:
            _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL"))
            connection.execute("PRAGMA synchronous = FULL")
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

    def run(self, connection: sqlite3.Connection, batch: list[_Job]) -> None:
        full = any(job.durable for job in batch)
        if full != self._full:
            # In WAL mode FULL adds one fsync of the log to the commit, which also makes every
            # earlier NORMAL commit durable; it can be chosen anew for each transaction.
            connection.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
            self._full = full
        _begin(connection)
        try:
            if len(batch) == 1:
                # What fails alone takes nothing with it: the transaction does for a savepoint.
                batch[0].run(connection)
            else:
                for job in batch:
                    self._run_one(connection, job)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _run_one(self, connection: sqlite3.Connection, job: _Job) -> None:
        connection.execute("SAVEPOINT job")
        try:
            job.run(connection)
        except Exception as error:
            if not connection.in_transaction:
                raise  # SQLite itself gave the transaction up (disk full, I/O error): all failed
            connection.execute("ROLLBACK TO job")
            job.error = translated(error, self.path)
        connection.execute("RELEASE job")


class _Reader(_DatabaseThread):
    role = "reader"

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        connection.execute("PRAGMA query_only = ON")
        return connection

    def run(self, connection: sqlite3.Connection, batch: list[_Job]) -> None:
        # One snapshot for the batch; it begins after the last of them was asked for.
        connection.execute("BEGIN")
        try:
            for job in batch:
                try:
                    job.run(connection)
                except Exception as error:  # noqa: BLE001 - it belongs to the caller
                    job.error = translated(error, self.path)
        finally:
            if connection.in_transaction:
                connection.execute("COMMIT")


def translated(error: BaseException, path: Path) -> BaseException:
    """`error` as a caller may see it: SQLite's become Unavailable, all others stay."""
    if not isinstance(error, sqlite3.Error | OSError):
        return error
    log.error("database failed", database=path.stem, reason=f"{type(error).__name__}: {error}")
    unavailable = Unavailable(f"The {path.stem} database does not answer.")
    unavailable.__cause__ = error
    return unavailable


def _begin(connection: sqlite3.Connection) -> None:
    _patiently(lambda: connection.execute("BEGIN IMMEDIATE"))


def _patiently(step: Callable[[], object]) -> None:
    """Run `step`, again and again while another process holds the lock.

    SQLite's own handler sleeps 1, 2, 5, 10... 100 ms, and does not wait at all when a file is
    turned into WAL mode; transactions here last well below 1 ms.
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


def _settle_all(batch: list[_Job]) -> None:
    for job in batch:
        job.settle()


def _finish_future(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _fail_future(future: "asyncio.Future[None]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
