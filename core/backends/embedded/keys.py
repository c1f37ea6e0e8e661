"""API keys, their limits and their usage in SQLite."""

import sqlite3
from datetime import date, timedelta
from typing import Any

from core.backends.embedded.database import Database, Schema
from core.backends.embedded.store import SqliteStore
from core.backends.embedded.timestamps import (
    from_micros,
    micros_or_null,
    moment_or_none,
    to_micros,
)
from core.clock import Clock
from core.domain.api_keys import ApiKey
from core.domain.principals import Scope
from core.domain.rate_limits import Allowance, Grant, Limit, Rate, TenantLimits, reserve
from core.domain.usage import Usage, UsageBatch

_TENANT_LIMITS = """
    CREATE TABLE tenant_limits (
        tenant      TEXT PRIMARY KEY,
        rate        TEXT,
        daily_quota INTEGER
    ) WITHOUT ROWID
"""
# The last batch of usage of each process, which that process may send again.
_USAGE_BATCHES = """
    CREATE TABLE usage_batches (
        id TEXT PRIMARY KEY,
        at INTEGER NOT NULL
    ) WITHOUT ROWID
"""

SCHEMA = Schema(
    version=2,
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
            key_id     TEXT NOT NULL,               -- of a key, or `tenant:` and its name
            limit_name TEXT NOT NULL,
            window     INTEGER NOT NULL,            -- seconds since 1970
            taken      INTEGER NOT NULL,
            owed       INTEGER NOT NULL DEFAULT 0,
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
        _TENANT_LIMITS,
        _USAGE_BATCHES,
    ),
    upgrades={
        1: (
            "ALTER TABLE allowances ADD COLUMN owed INTEGER NOT NULL DEFAULT 0",
            _TENANT_LIMITS,
            _USAGE_BATCHES,
        )
    },
)

_COLUMNS = (
    "id, tenant, name, scopes, digest, created_at, expires_at, revoked_at, last_used_at,"
    " rotated_at, previous_digest, previous_expires_at, rate, daily_quota"
)
# ruff's S608 warns of values in SQL text; these are constants.
_SELECT = f"SELECT {_COLUMNS} FROM api_keys"
_INSERT = (
    f"INSERT INTO api_keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT DO NOTHING"
)
_REPLACE = f"REPLACE INTO api_keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ADD = """
    INSERT INTO usage (tenant, day, key_id, requests, images, bytes, refused)
    VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,
        images = images + excluded.images, bytes = bytes + excluded.bytes,
        refused = refused + excluded.refused
"""


_BATCH_AGE = timedelta(hours=1)  # longer than a process repeats a batch


class SqliteKeyStore(SqliteStore[str, ApiKey]):
    """`core.ports.KeyStore`. `create` is fsynced."""

    async def create(self, key: ApiKey) -> bool:
        return await self._write_row(_INSERT, _row_of(key))

    async def keys(self, tenant: str | None = None) -> list[ApiKey]:
        statement = f"{_SELECT} WHERE tenant = ?1 OR ?1 IS NULL ORDER BY created_at, id"
        return await self._read_rows(statement, (tenant,), _key_of)

    async def limits(self, tenant: str) -> TenantLimits:
        def select(connection: sqlite3.Connection) -> TenantLimits:
            row = connection.execute(
                "SELECT rate, daily_quota FROM tenant_limits WHERE tenant = ?", (tenant,)
            ).fetchone()
            rate, quota = row or (None, None)
            return TenantLimits(None if rate is None else Rate.parse(rate), quota)

        return await self._database.read(select)

    async def set_limits(self, tenant: str, limits: TenantLimits) -> None:
        row = (tenant, None if limits.rate is None else str(limits.rate), limits.daily_quota)
        await self._write_row("REPLACE INTO tenant_limits VALUES (?, ?, ?)", row)

    def _select(self, connection: sqlite3.Connection, key: str) -> ApiKey | None:
        row = connection.execute(f"{_SELECT} WHERE id = ?", (key,)).fetchone()
        return None if row is None else _key_of(row)

    def _update(self, connection: sqlite3.Connection, state: ApiKey) -> None:
        connection.execute(_REPLACE, _row_of(state))


class SqliteAllowanceStore:
    """`core.ports.AllowanceStore`. A power loss may undo the newest shares."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def reserve(self, owner: str, limit: Limit, spent: int = 0) -> Grant:
        def reserve_share(connection: sqlite3.Connection) -> Grant:
            row = connection.execute(
                "SELECT window, taken, owed FROM allowances WHERE key_id = ? AND limit_name = ?",
                (owner, limit.name),
            ).fetchone()
            before = None if row is None else Allowance(*row)
            after, grant = reserve(before, limit, self._clock(), spent)
            if after != before and not grant.refused:
                connection.execute(
                    "REPLACE INTO allowances (key_id, limit_name, window, taken, owed)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (owner, limit.name, after.window, after.taken, after.owed),
                )
            return grant

        return await self._database.write(reserve_share, durable=False)


class SqliteUsageStore:
    """`core.ports.UsageStore`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def add(self, batch: UsageBatch) -> None:
        u, now = batch.usage, self._clock()
        row = (u.tenant, u.day.isoformat(), u.key_id, u.requests, u.images, u.bytes, u.refused)

        def add(connection: sqlite3.Connection) -> None:
            connection.execute(
                "DELETE FROM usage_batches WHERE at < ?", (to_micros(now - _BATCH_AGE),)
            )
            added = connection.execute(
                "INSERT INTO usage_batches VALUES (?, ?) ON CONFLICT DO NOTHING",
                (batch.id, to_micros(now)),
            )
            if added.rowcount == 1:
                connection.execute(_ADD, row)

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
