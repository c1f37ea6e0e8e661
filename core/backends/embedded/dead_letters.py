"""Dead letters in SQLite, in the database of the records."""

import json
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from core.backends.embedded.store import SqliteStore
from core.backends.embedded.timestamps import from_micros, micros_or_null, moment_or_none, to_micros
from core.domain.dead_letters import DeadLetter, LetterFilter, LetterKey
from core.domain.sort_keys import bound

TABLE: Sequence[str] = (
    # Times are microseconds since 1970.
    """
    CREATE TABLE dead_letters (
        tenant       TEXT NOT NULL,
        id           TEXT NOT NULL,
        sort_key     TEXT NOT NULL,
        code         TEXT NOT NULL,
        detail       TEXT NOT NULL,
        attributes   TEXT NOT NULL,         -- JSON object of strings
        payload      BLOB NOT NULL,
        payload_size INTEGER NOT NULL,
        attempts     INTEGER NOT NULL,
        published_at INTEGER NOT NULL,
        died_at      INTEGER NOT NULL,
        resolved_at  INTEGER,
        PRIMARY KEY (tenant, id)
    )
    """,
    "CREATE INDEX dead_letters_by_age ON dead_letters (tenant, sort_key)",
    "CREATE INDEX dead_letters_of_all ON dead_letters (sort_key)",
)

_COLUMNS = (
    "tenant, id, code, detail, attributes, payload, payload_size, attempts, published_at, died_at,"
    " resolved_at"
)
# ruff's S608 warns of values in SQL text; these are constants.
_ROW = f"INTO dead_letters ({_COLUMNS}, sort_key) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT = f"INSERT {_ROW} ON CONFLICT DO NOTHING"
_REPLACE = f"REPLACE {_ROW}"
_GET = f"SELECT {_COLUMNS} FROM dead_letters WHERE tenant = ? AND id = ?"
_LIST = (
    f"SELECT {_COLUMNS} FROM dead_letters"
    " WHERE tenant = ?1 AND sort_key > ?2 AND sort_key < ?3"
    " AND (?4 = '' OR code = ?4) AND (?5 OR resolved_at IS NULL) ORDER BY sort_key LIMIT ?6"
)


class SqliteDeadLetterStore(SqliteStore[LetterKey, DeadLetter]):
    """`core.ports.DeadLetterStore`. `add`, `delete` and `purge` are fsynced."""

    async def add(self, letter: DeadLetter) -> bool:
        return await self._write_row(_INSERT, _row_of(letter))

    async def list(self, wanted: LetterFilter, limit: int, after: str = "") -> Sequence[DeadLetter]:
        low, high = wanted.bounds(after)
        values = (wanted.tenant, low, high, wanted.code, wanted.resolved, limit)
        return await self._read_rows(_LIST, values, _letter_of)

    async def delete(self, key: LetterKey) -> bool:
        return await self._write_row("DELETE FROM dead_letters WHERE tenant = ? AND id = ?", key)

    async def purge(self, before: datetime, limit: int) -> int:
        def purge(connection: sqlite3.Connection) -> int:
            return connection.execute(
                "DELETE FROM dead_letters WHERE rowid IN"
                " (SELECT rowid FROM dead_letters WHERE sort_key > ? LIMIT ?)",
                (bound(before), limit),
            ).rowcount

        return await self._database.write(purge, durable=True)

    def _select(self, connection: sqlite3.Connection, key: LetterKey) -> DeadLetter | None:
        row = connection.execute(_GET, key).fetchone()
        return None if row is None else _letter_of(row)

    def _update(self, connection: sqlite3.Connection, state: DeadLetter) -> None:
        connection.execute(_REPLACE, _row_of(state))


def _row_of(letter: DeadLetter) -> tuple[object, ...]:
    """In the order of `_ROW`."""
    return (
        letter.tenant,
        letter.id,
        letter.code,
        letter.detail,
        json.dumps(dict(letter.attributes)),
        letter.payload,
        letter.payload_size,
        letter.attempts,
        to_micros(letter.published_at),
        to_micros(letter.died_at),
        micros_or_null(letter.resolved_at),
        letter.sort_key,
    )


def _letter_of(row: tuple[Any, ...]) -> DeadLetter:
    tenant, id_, code, detail, attributes, payload, size, attempts, published, died, resolved = row
    return DeadLetter(
        id=id_,
        tenant=tenant,
        attributes=json.loads(attributes),
        payload=payload,
        payload_size=size,
        attempts=attempts,
        code=code,
        detail=detail,
        published_at=from_micros(published),
        died_at=from_micros(died),
        resolved_at=moment_or_none(resolved),
    )
