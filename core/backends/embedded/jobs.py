"""Jobs in SQLite, in the database of the records."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta

from core.backends.embedded.database import Database
from core.backends.embedded.store import Row, SqliteStore
from core.backends.embedded.timestamps import to_micros
from core.clock import Clock, utc_now
from core.domain import jobs
from core.domain.job_codec import job_of_text, text_of_job
from core.domain.jobs import Counts, ItemState, Job, JobFilter, JobItem, JobKey
from core.domain.policy import JobPolicy
from core.domain.records import RecordError

TABLES: Sequence[str] = (
    # A job is a JSON object. What queries search for has columns beside it.
    """
    CREATE TABLE jobs (
        tenant   TEXT NOT NULL,
        id       TEXT NOT NULL,
        sort_key TEXT NOT NULL,
        status   TEXT NOT NULL,
        type     TEXT NOT NULL,
        owner    TEXT NOT NULL,
        sealed   INTEGER NOT NULL,
        wake_at  INTEGER NOT NULL,      -- microseconds since 1970
        document TEXT NOT NULL,
        PRIMARY KEY (tenant, id)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX jobs_by_age ON jobs (tenant, sort_key) WHERE sealed = 1",
    "CREATE INDEX jobs_due ON jobs (wake_at)",
    """
    CREATE TABLE job_items (
        tenant     TEXT NOT NULL,
        job        TEXT NOT NULL,
        position   INTEGER NOT NULL,
        image_hash TEXT NOT NULL,
        name       TEXT NOT NULL,
        metadata   TEXT NOT NULL,       -- JSON object
        state      TEXT NOT NULL,
        error      TEXT,                -- JSON object
        PRIMARY KEY (tenant, job, position)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX job_items_by_state ON job_items (tenant, job, state)",
)

_KEY = "tenant = ? AND id = ?"
_ITEMS_OF = "tenant = ? AND job = ?"
_ITEM = "position, image_hash, name, metadata, state, error"
# ruff's S608 warns of values in SQL text; these are constants.
_GET = f"SELECT document FROM jobs WHERE {_KEY}"
_INSERT = (
    "INSERT INTO jobs (tenant, id, sort_key, status, type, owner, sealed, wake_at, document)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_UPDATE = f"UPDATE jobs SET status = ?, sealed = ?, wake_at = ?, document = ? WHERE {_KEY}"
_LIST = (
    "SELECT document FROM jobs WHERE tenant = ?1 AND sealed = 1 AND sort_key > ?2"
    " AND (?3 = '' OR status = ?3) AND (?4 = '' OR type = ?4) AND (?5 IS NULL OR owner = ?5)"
    " ORDER BY sort_key LIMIT ?6"
)
_INSERT_ITEM = (
    f"INSERT INTO job_items (tenant, job, {_ITEM})"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_ITEMS = (
    f"SELECT {_ITEM} FROM job_items WHERE {_ITEMS_OF} AND position > ?"
    " AND state LIKE ? ORDER BY position LIMIT ?"
)
_DUE = (
    "SELECT document FROM (SELECT document, wake_at, row_number() OVER"
    " (PARTITION BY tenant ORDER BY wake_at) AS turn FROM jobs WHERE wake_at <= ?"
    " ORDER BY turn, wake_at LIMIT ?) ORDER BY wake_at"
)
_OPEN = f"SELECT 1 FROM job_items WHERE {_ITEMS_OF} AND state = 'open' LIMIT 1"
_COUNT = f"SELECT state, count(*) FROM job_items WHERE {_ITEMS_OF} GROUP BY state"
_GET_ITEM = f"SELECT {_ITEM} FROM job_items WHERE {_ITEMS_OF} AND position = ?"
_UPDATE_ITEM = f"UPDATE job_items SET state = ?, error = ? WHERE {_ITEMS_OF} AND position = ?"
KEYS_A_QUERY = 400  # SQLite takes 32,766 values; each key has two


class SqliteJobStore(SqliteStore[JobKey, Job]):
    """`core.ports.JobStore`. `create`, `add_items` and `delete` are fsynced."""

    def __init__(
        self, database: Database, clock: Clock = utc_now, policy: JobPolicy = jobs.POLICY
    ) -> None:
        super().__init__(database, clock)
        self._policy = policy

    async def create(self, job: Job) -> bool:
        row = (*_key_of(job.key), job.sort_key, job.status, job.type, job.owner)
        rest = (job.sealed, to_micros(job.wake_at), text_of_job(job))
        return await self._write_row(_INSERT, (*row, *rest))

    async def add_items(self, key: JobKey, items: Sequence[JobItem]) -> None:
        rows = [(*_key_of(key), *_row_of(item)) for item in items]
        await self._database.write(
            lambda connection: connection.executemany(_INSERT_ITEM, rows), durable=True
        )

    async def get_many(self, keys: Sequence[JobKey]) -> Mapping[JobKey, Job]:
        def select(connection: sqlite3.Connection) -> dict[JobKey, Job]:
            found: dict[JobKey, Job] = {}
            for begin in range(0, len(keys), KEYS_A_QUERY):
                chunk = keys[begin : begin + KEYS_A_QUERY]
                marks = ", ".join(["(?, ?)"] * len(chunk))
                rows = connection.execute(
                    f"SELECT document FROM jobs WHERE (tenant, id) IN (VALUES {marks})",
                    [value for key in chunk for value in _key_of(key)],
                )
                found |= {job.key: job for job in map(_job_of, rows)}
            return found

        return await self._database.read(select)

    async def list(self, wanted: JobFilter, limit: int, after: str = "") -> Sequence[Job]:
        values = (wanted.tenant, after, wanted.status, wanted.type, wanted.owner, limit)
        return await self._read_rows(_LIST, values, _job_of)

    async def items(
        self, key: JobKey, limit: int, after: int = -1, state: ItemState | None = None
    ) -> Sequence[JobItem]:
        values = (*_key_of(key), after, state or "%", limit)
        return await self._read_rows(_ITEMS, values, _item_of)

    async def complete_item(
        self, key: JobKey, position: int, error: RecordError | None, interval: timedelta
    ) -> Job | None:
        def complete(connection: sqlite3.Connection) -> Job | None:
            if not _complete_item(connection, key, position, error):
                return None
            return self._refresh_counts(connection, key, interval)

        return await self._database.write(complete, durable=False)

    async def complete_items(self, key: JobKey, outcomes: Mapping[int, RecordError | None]) -> None:
        def complete(connection: sqlite3.Connection) -> None:
            for position, error in outcomes.items():
                _complete_item(connection, key, position, error)

        await self._database.write(complete, durable=False)

    async def refresh_counts(self, key: JobKey, interval: timedelta = timedelta(0)) -> Job | None:
        return await self._database.write(
            lambda connection: self._refresh_counts(connection, key, interval), durable=False
        )

    async def due(self, now: datetime, limit: int) -> Sequence[Job]:
        return await self._read_rows(_DUE, (to_micros(now), limit), _job_of)

    async def delete(self, key: JobKey) -> bool:
        def delete(connection: sqlite3.Connection) -> bool:
            connection.execute(f"DELETE FROM job_items WHERE {_ITEMS_OF}", _key_of(key))
            return connection.execute(f"DELETE FROM jobs WHERE {_KEY}", _key_of(key)).rowcount == 1

        return await self._database.write(delete, durable=True)

    def _select(self, connection: sqlite3.Connection, key: JobKey) -> Job | None:
        row = connection.execute(_GET, _key_of(key)).fetchone()
        return None if row is None else _job_of(row)

    def _update(self, connection: sqlite3.Connection, state: Job) -> None:
        row = (state.status, state.sealed, to_micros(state.wake_at), text_of_job(state))
        connection.execute(_UPDATE, (*row, *_key_of(state.key)))

    def _refresh_counts(
        self, connection: sqlite3.Connection, key: JobKey, interval: timedelta
    ) -> Job | None:
        job, now = self._select(connection, key), self._clock()
        if job is None:
            return None
        any_open = connection.execute(_OPEN, _key_of(key)).fetchone() is not None
        if not jobs.count_is_due(job, now, interval, any_open=any_open):
            return None
        by_state = dict(connection.execute(_COUNT, _key_of(key)).fetchall())
        counts = Counts(
            job.counts.total,
            by_state.get(ItemState.SUCCEEDED, 0),
            by_state.get(ItemState.FAILED, 0),
        )
        after = jobs.update_counts(counts, policy=self._policy)(job, now)
        if after is not None:
            self._update(connection, after)
        return after


def _complete_item(
    connection: sqlite3.Connection, key: JobKey, position: int, error: RecordError | None
) -> bool:
    """Returns False if there is no such item."""
    place = (*_key_of(key), position)
    row = connection.execute(_GET_ITEM, place).fetchone()
    if row is None:
        return False
    after = jobs.complete_item(_item_of(row), error)
    if after is not None:
        connection.execute(_UPDATE_ITEM, (after.state, _error_json(after.error), *place))
    return True


def _key_of(key: JobKey) -> tuple[str, str]:
    return (key.tenant, key.id)


def _job_of(row: Row) -> Job:
    return job_of_text(row[0])


def _row_of(item: JobItem) -> tuple[object, ...]:
    return (
        item.position,
        item.image_hash,
        item.name,
        json.dumps(dict(item.metadata)),
        item.state,
        _error_json(item.error),
    )


def _error_json(error: RecordError | None) -> str | None:
    return None if error is None else json.dumps(asdict(error))


def _item_of(row: Row) -> JobItem:
    position, image_hash, name, metadata, state, error = row
    return JobItem(
        position=position,
        image_hash=image_hash,
        name=name,
        metadata=json.loads(metadata),
        state=ItemState(state),
        error=None if error is None else RecordError(**json.loads(error)),
    )
