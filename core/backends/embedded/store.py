"""What the SQLite stores share: reading one object by its key, and changing it."""

from __future__ import annotations  # those of nested functions cost time in each call

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from core.backends.embedded.database import Database
from core.clock import Clock, utc_now
from core.domain.transitions import Transition

K = TypeVar("K")
T = TypeVar("T")
R = TypeVar("R")
Row = tuple[Any, ...]


class SqliteStore(ABC, Generic[K, T]):
    """`core.ports.Store` over a row's select and update."""

    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def get(self, key: K) -> T | None:
        return await self._database.read(lambda connection: self._select(connection, key))

    async def change(self, key: K, transition: Transition[T]) -> T | None:
        def apply(connection: sqlite3.Connection) -> T | None:
            before = self._select(connection, key)
            after = None if before is None else transition(before, self._clock())
            if after is not None:
                self._update(connection, after)
            return after

        return await self._database.write(apply, durable=transition.durable)

    async def _write_row(self, statement: str, values: Sequence[object]) -> bool:
        """Run an INSERT or DELETE durably. Returns whether it changed a row."""

        def write(connection: sqlite3.Connection) -> bool:
            return connection.execute(statement, values).rowcount == 1

        return await self._database.write(write, durable=True)

    async def _read_rows(
        self, statement: str, values: Sequence[object], convert: Callable[[Row], R]
    ) -> list[R]:
        """The rows of a SELECT, each as what `convert` makes of it."""

        def read(connection: sqlite3.Connection) -> list[R]:
            return [convert(row) for row in connection.execute(statement, values)]

        return await self._database.read(read)

    @abstractmethod
    def _select(self, connection: sqlite3.Connection, key: K) -> T | None: ...

    @abstractmethod
    def _update(self, connection: sqlite3.Connection, state: T) -> None:
        """Replace the row of `state`, which exists."""
