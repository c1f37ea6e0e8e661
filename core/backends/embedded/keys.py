"""API keys, their limits and their usage in SQLite."""

import sqlite3
from collections.abc import Sequence
from datetime import date
from typing import Any

from core.backends.embedded.database import Database, Schema
from core.backends.embedded.store import SqliteStore
from core.backends.embedded.timestamps import (
    from_micros,
    micros_or_null,
    moment_or_none,
    to_micros,
)
from core.clock import Clock, utc_now
from core.domain.api_keys import ApiKey
from core.domain.principals import Scope
from core.domain.rate_limits import Allowance, Grant, Limit, Rate, reserve
from core.domain.usage import Usage

SCHEMA = Schema(
    version=1,
    statements=(
        """
        CREATE TABLE api_keys (
            id                  TEXT PRIMARY KEY,
            tenant              TEXT NOT NULL,
            name                TEXT NOT NULL,
            scopes              TEXT NOT NULL,      -- separated by spaces
            digest              BLOB NOT NULL,
            created_at          INTEGER NOT NULL,   -- microseconds since 1970, as all times
            expires_at          INTEGER,
            revoked_at          INTEGER,
            last_used_at        INTEGER,
            rotated_at          INTEGER,
            previous_digest     BLOB,
            previous_expires_at INTEGER,
            rate                TEXT,
            daily_quota         INTEGER
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE allowances (
            key_id     TEXT NOT NULL,
            limit_name TEXT NOT NULL,
            window     INTEGER NOT NULL,            -- seconds since 1970
            taken      INTEGER NOT NULL,
            PRIMARY KEY (key_id, limit_name)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE usage (
            tenant   TEXT NOT NULL,
            day      TEXT NOT NULL,                 -- ISO 8601
            key_id   TEXT NOT NULL,
            requests INTEGER NOT NULL,
            images   INTEGER NOT NULL,
            bytes    INTEGER NOT NULL,
            refused  INTEGER NOT NULL,
            PRIMARY KEY (tenant, day, key_id)
        ) WITHOUT ROWID
        """,
    ),
)

_COLUMNS = (
    "id, tenant, name, scopes, digest, created_at, expires_at, revoked_at, last_used_at,"
    " rotated_at, previous_digest, previous_expires_at, rate, daily_quota"
)
# ruff's S608 warns of values in SQL text; these are constants.
_SELECT = f"SELECT {_COLUMNS} FROM api_keys"  # noqa: S608
_INSERT = (
    f"INSERT INTO api_keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
    " ON CONFLICT DO NOTHING"
)
_REPLACE = (
    f"REPLACE INTO api_keys ({_COLUMNS})"  # noqa: S608
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_ADD = """
    INSERT INTO usage (tenant, day, key_id, requests, images, bytes, refused)
    VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,
        images = images + excluded.images, bytes = bytes + excluded.bytes,
        refused = refused + excluded.refused
"""


class SqliteKeyStore(SqliteStore[str, ApiKey]):
    """`core.ports.KeyStore`. `create` is fsynced."""

    async def create(self, key: ApiKey) -> bool:
        def insert(connection: sqlite3.Connection) -> bool:
            return connection.execute(_INSERT, _row_of(key)).rowcount == 1

        return await self._database.write(insert, durable=True)

    async def keys(self, tenant: str | None = None) -> list[ApiKey]:
        def select(connection: sqlite3.Connection) -> list[ApiKey]:
            rows = connection.execute(
                f"{_SELECT} WHERE tenant = ? OR ? IS NULL ORDER BY created_at, id",
                (tenant, tenant),
            )
            return [_key_of(row) for row in rows.fetchall()]

        return await self._database.read(select)

    def _select(self, connection: sqlite3.Connection, key: str) -> ApiKey | None:
        row = connection.execute(f"{_SELECT} WHERE id = ?", (key,)).fetchone()
        return None if row is None else _key_of(row)

    def _update(self, connection: sqlite3.Connection, state: ApiKey) -> None:
        connection.execute(_REPLACE, _row_of(state))


class SqliteAllowanceStore:
    """`core.ports.AllowanceStore`. A power loss may undo the newest shares."""

    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def reserve(self, key_id: str, limit: Limit) -> Grant:
        def reserve_share(connection: sqlite3.Connection) -> Grant:
            row = connection.execute(
                "SELECT window, taken FROM allowances WHERE key_id = ? AND limit_name = ?",
                (key_id, limit.name),
            ).fetchone()
            after, grant = reserve(None if row is None else Allowance(*row), limit, self._clock())
            if grant.count:
                connection.execute(
                    "REPLACE INTO allowances (key_id, limit_name, window, taken)"
                    " VALUES (?, ?, ?, ?)",
                    (key_id, limit.name, after.window, after.taken),
                )
            return grant

        return await self._database.write(reserve_share, durable=False)


class SqliteUsageStore:
    """`core.ports.UsageStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, counts: Sequence[Usage]) -> None:
        rows = [
            (u.tenant, u.day.isoformat(), u.key_id, u.requests, u.images, u.bytes, u.refused)
            for u in counts
        ]

        def add(connection: sqlite3.Connection) -> None:
            connection.executemany(_ADD, rows)

        await self._database.write(add, durable=False)

    async def read(self, tenant: str, since: date) -> list[Usage]:
        def select(connection: sqlite3.Connection) -> list[Usage]:
            rows = connection.execute(
                "SELECT tenant, key_id, day, requests, images, bytes, refused FROM usage"
                " WHERE tenant = ? AND day >= ? ORDER BY day, key_id",
                (tenant, since.isoformat()),
            )
            return [
                Usage(owner, key_id, date.fromisoformat(day), *counts)
                for owner, key_id, day, *counts in rows.fetchall()
            ]

        return await self._database.read(select)

    async def purge(self, before: date, limit: int) -> int:
        def purge(connection: sqlite3.Connection) -> int:
            return connection.execute(
                "DELETE FROM usage WHERE (tenant, day, key_id) IN"
                " (SELECT tenant, day, key_id FROM usage WHERE day < ? LIMIT ?)",
                (before.isoformat(), limit),
            ).rowcount

        return await self._database.write(purge, durable=False)


def _row_of(key: ApiKey) -> tuple[object, ...]:
    """In the order of the table."""
    return (
        key.id,
        key.tenant,
        key.name,
        " ".join(sorted(key.scopes)),
        key.digest,
        to_micros(key.created_at),
        micros_or_null(key.expires_at),
        micros_or_null(key.revoked_at),
        micros_or_null(key.last_used_at),
        micros_or_null(key.rotated_at),
        key.previous_digest,
        micros_or_null(key.previous_expires_at),
        None if key.rate is None else str(key.rate),
        key.daily_quota,
    )


def _key_of(row: tuple[Any, ...]) -> ApiKey:
    id_, tenant, name, scopes, digest, *times, previous, previous_end, rate, quota = row
    created, expires, revoked, used, rotated = times
    return ApiKey(
        id=id_,
        tenant=tenant,
        name=name,
        scopes=frozenset(Scope(scope) for scope in scopes.split()),
        digest=digest,
        created_at=from_micros(created),
        expires_at=moment_or_none(expires),
        revoked_at=moment_or_none(revoked),
        last_used_at=moment_or_none(used),
        rotated_at=moment_or_none(rotated),
        previous_digest=previous,
        previous_expires_at=moment_or_none(previous_end),
        rate=None if rate is None else Rate.parse(rate),
        daily_quota=quota,
    )
