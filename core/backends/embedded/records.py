"""Records in SQLite."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import datetime
from typing import Any

from core.backends.embedded import dead_letters, jobs
from core.backends.embedded.database import Schema
from core.backends.embedded.store import SqliteStore
from core.backends.embedded.timestamps import from_micros, micros_or_null, moment_or_none, to_micros
from core.domain import deletions
from core.domain.deletions import Deletion, Stage
from core.domain.priority import Priority
from core.domain.record_lists import (
    MIN_CONFIDENCE,
    TIERS,
    PageBuilder,
    RecordFilter,
    RecordPage,
    terms_of,
)
from core.domain.records import (
    Annotation,
    Claim,
    ImageKey,
    Record,
    RecordError,
    RecordKey,
    Status,
    discardable,
)
from core.errors import Conflict, NotFound

_TERMS = """
    CREATE TABLE record_terms (
        tenant   TEXT NOT NULL,
        term     TEXT NOT NULL,             -- core.domain.record_lists.terms_of
        sort_key TEXT NOT NULL,
        PRIMARY KEY (tenant, term, sort_key)
    ) WITHOUT ROWID
"""
_DELETIONS = (
    """
    CREATE TABLE deletions (
        tenant     TEXT NOT NULL,
        image_hash TEXT NOT NULL,
        token      INTEGER NOT NULL,
        stage      TEXT NOT NULL,
        wake_at    INTEGER NOT NULL,        -- microseconds since 1970
        PRIMARY KEY (tenant, image_hash)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX due_deletions ON deletions (wake_at)",
)
_DELETION_OWNERS = ("ALTER TABLE deletions ADD COLUMN owner TEXT NOT NULL DEFAULT ''",)
_LIST_INDEXES = (
    "CREATE INDEX records_by_age ON records (tenant, sort_key)",
    "CREATE INDEX records_by_model ON records (tenant, model, sort_key)",
    # Most records are successes: without them, the index is small and most writes do not touch it.
    "CREATE INDEX records_by_status ON records (tenant, status, sort_key)"
    " WHERE status <> 'success'",
)


def _add_terms(column: str, kind: str, tier: int) -> str:
    """Adds the terms of existing successes, as `terms_of` makes them."""
    return (
        "INSERT OR IGNORE INTO record_terms"
        f" SELECT tenant, '{kind}/{tier}:' || json_extract(each.value, '$.label'), sort_key"
        f" FROM records, json_each(records.{column}) AS each"
        f" WHERE json_extract(each.value, '$.confidence') >= {TIERS[tier]}"
        f" AND (json_extract(each.value, '$.confidence') >= {MIN_CONFIDENCE}"
        " OR json_extract(each.value, '$.index') = 1)"
    )


TERMS_OF_EXISTING = tuple(
    _add_terms(column, kind, tier)
    for column, kind in (("annotations", "label"), ("categories", "category"))
    for tier in range(len(TIERS))
)
SCHEMA = Schema(
    version=10,
    upgrades={
        3: (
            "ALTER TABLE records ADD COLUMN categories TEXT NOT NULL DEFAULT '[]'",
            "ALTER TABLE records ADD COLUMN confident INTEGER",
            "ALTER TABLE dead_letters RENAME COLUMN position TO sort_key",
            "ALTER TABLE jobs RENAME COLUMN position TO sort_key",
            "ALTER TABLE job_items DROP COLUMN twin_of",
            "ALTER TABLE job_items DROP COLUMN twins",
        ),
        4: (
            "ALTER TABLE records ADD COLUMN sort_key TEXT NOT NULL DEFAULT ''",
            # `core.domain.sort_keys`
            "UPDATE records SET sort_key = printf('%016d', 9999999999999999 - created_at) || '-'"
            " || substr(image_hash, -20) || substr(model, -12)",
            _TERMS,
            *_LIST_INDEXES,
            *TERMS_OF_EXISTING,
        ),
        5: ("ALTER TABLE records ADD COLUMN claims INTEGER NOT NULL DEFAULT 0",),
        6: _DELETIONS,
        7: ("ALTER TABLE records ADD COLUMN output TEXT NOT NULL DEFAULT ''",),
        8: ("ALTER TABLE records ADD COLUMN republished_at INTEGER",),
        9: _DELETION_OWNERS,
    },
    statements=(
        *dead_letters.TABLE,
        *jobs.TABLES,
        """
        CREATE TABLE records (
            tenant           TEXT NOT NULL,
            image_hash       TEXT NOT NULL,
            model            TEXT NOT NULL,
            status           TEXT NOT NULL,
            annotations      TEXT NOT NULL,     -- JSON array
            error            TEXT,              -- JSON object
            attempts         INTEGER NOT NULL,
            token            INTEGER NOT NULL,
            lease_expires_at INTEGER,           -- microseconds since 1970, as all times
            created_at       INTEGER NOT NULL,
            updated_at       INTEGER NOT NULL,
            submitted_at     INTEGER NOT NULL,
            priority         TEXT NOT NULL DEFAULT 'high',
            job              TEXT NOT NULL DEFAULT '',
            categories       TEXT NOT NULL DEFAULT '[]',
            confident        INTEGER,           -- 0, 1 or null
            sort_key         TEXT NOT NULL DEFAULT '',
            claims           INTEGER NOT NULL DEFAULT 0,
            output           TEXT NOT NULL DEFAULT '',  -- JSON, or empty
            republished_at   INTEGER,
            PRIMARY KEY (tenant, image_hash, model)
        ) WITHOUT ROWID
        """,
        """
        CREATE INDEX unfinished_records ON records (updated_at)
        WHERE status IN ('pending', 'queued', 'running')
        """,
        _TERMS,
        *_LIST_INDEXES,
        *_DELETIONS,
        *_DELETION_OWNERS,
    ),
)

_KEY = "tenant = ? AND image_hash = ? AND model = ?"
_COLUMNS = (
    "tenant, image_hash, model, status, annotations, error, attempts, token, lease_expires_at,"
    " created_at, updated_at, submitted_at, priority, job, categories, confident, claims,"
    " output, republished_at"
)
# ruff's S608 warns of values in SQL text; these are constants.
_SELECT = f"SELECT {_COLUMNS} FROM records WHERE {_KEY}"
# An array in one parameter: one statement, prepared once, for any number of keys.
_SELECT_MANY = (
    f"SELECT {_COLUMNS} FROM records WHERE tenant = ? AND model = ?"
    " AND image_hash IN (SELECT value FROM json_each(?))"
)
_INSERT = (
    f"INSERT INTO records ({_COLUMNS}, sort_key)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_UPDATE = (
    "UPDATE records SET status = ?, annotations = ?, error = ?, attempts = ?, token = ?,"
    " lease_expires_at = ?, created_at = ?, updated_at = ?, submitted_at = ?, priority = ?,"
    f" job = ?, categories = ?, confident = ?, claims = ?, output = ?,"
    f" republished_at = ? WHERE {_KEY}"
)
# SQLite uses the partial index only if the condition repeats that of the index word for word.
_STALE = (
    f"SELECT {_COLUMNS} FROM (SELECT *, row_number() OVER"
    " (PARTITION BY tenant ORDER BY updated_at) AS turn FROM records"
    " WHERE status IN ('pending', 'queued', 'running') AND updated_at < ?"
    " ORDER BY turn, updated_at LIMIT ?) ORDER BY updated_at"
)
# Each list reads one index, in the order of the sort keys.
_LIST_BY_AGE = (
    f"SELECT {_COLUMNS} FROM records INDEXED BY records_by_age"
    " WHERE tenant = ? AND sort_key > ? AND sort_key < ? ORDER BY sort_key"
)
_LIST_BY_MODEL = (
    f"SELECT {_COLUMNS} FROM records INDEXED BY records_by_model"
    " WHERE tenant = ? AND model = ? AND sort_key > ? AND sort_key < ? ORDER BY sort_key"
)
_LIST_BY_STATUS = (
    f"SELECT {_COLUMNS} FROM records INDEXED BY records_by_status"
    " WHERE tenant = ? AND status = ? AND status <> 'success'"
    " AND sort_key > ? AND sort_key < ? ORDER BY sort_key"
)
# Without the unary plus, SQLite would search records by the bounds instead of the one sort key.
_LIST_BY_TERM = (
    f"SELECT {_COLUMNS} FROM"
    " (SELECT tenant AS owner, sort_key AS position FROM record_terms"
    " WHERE tenant = ? AND term = ? AND sort_key > ? AND sort_key < ?)"
    " CROSS JOIN records INDEXED BY records_by_age"
    " ON tenant = owner AND sort_key = +position ORDER BY position"
)
_INSERT_TERM = (
    "INSERT INTO record_terms (tenant, term, sort_key) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
)
_DELETE_TERM = "DELETE FROM record_terms WHERE tenant = ? AND term = ? AND sort_key = ?"
_DELETION = "tenant, image_hash, token, stage, wake_at, owner"
_PUT_DELETION = f"REPLACE INTO deletions ({_DELETION}) VALUES (?, ?, ?, ?, ?, ?)"
_SELECT_IMAGE = f"SELECT {_COLUMNS} FROM records WHERE tenant = ? AND image_hash = ?"

_SELECT_MODEL = f"SELECT {_COLUMNS} FROM records WHERE tenant = ? AND model = ? LIMIT ?"


class SqliteRecordStore(SqliteStore[RecordKey, Record]):
    """`core.ports.RecordStore`. `create` and the deletions are fsynced."""

    async def get_many(self, keys: Sequence[RecordKey]) -> Mapping[RecordKey, Record]:
        if not keys:
            return {}
        return await self._database.read(lambda connection: _select_many(connection, keys))

    async def create(self, record: Record) -> bool:
        row = (*_key_of(record.key), *_state_of(record), record.sort_key)
        return await self._write_row(_INSERT, row)

    async def list(self, wanted: RecordFilter, limit: int, after: str = "") -> RecordPage:
        statement, values = _list_query(wanted)
        bounds = wanted.bounds(after)

        def select(connection: sqlite3.Connection) -> RecordPage:
            page = PageBuilder(wanted, limit)
            with closing(connection.execute(statement, (*values, *bounds))) as rows:
                for row in rows:
                    page.add(_record_of(row))
                    if page.full:
                        break
            return page.page()

        return await self._database.read(select)

    async def stale(self, before: datetime, limit: int) -> Sequence[Record]:
        return await self._read_rows(_STALE, (to_micros(before), limit), _record_of)

    async def of_image(self, tenant: str, image_hash: str) -> Sequence[Record]:
        return await self._read_rows(_SELECT_IMAGE, (tenant, image_hash), _record_of)

    async def discard(self, claim: Claim) -> bool:
        def delete(connection: sqlite3.Connection) -> bool:
            record = self._select(connection, claim.key)
            if record is None or not discardable(record, claim):
                return False
            # It has no terms, because it is not a success.
            connection.execute(f"DELETE FROM records WHERE {_KEY}", _key_of(claim.key))
            return True

        return await self._database.write(delete, durable=True)

    async def begin_deletion(self, image: ImageKey, owner: str, *, has_blob: bool) -> Deletion:
        def begin(connection: sqlite3.Connection) -> Deletion:
            before = _select_deletion(connection, image)
            after = deletions.begin(before, image, self._clock(), owner)
            if after is None:
                raise Conflict("The image is being deleted.")
            if after is before:
                return after
            if not _delete_records(connection, image) and not has_blob:
                raise NotFound("No such image.")
            _put_deletion(connection, after)
            return after

        return await self._database.write(begin, durable=True)

    async def end_deletion(self, deletion: Deletion) -> bool:
        def end(connection: sqlite3.Connection) -> bool:
            before = _select_deletion(connection, deletion.image)
            after = deletions.end(before, deletion, self._clock())
            if after is not None:
                _put_deletion(connection, after)
            return after is not None

        return await self._database.write(end, durable=True)

    async def deletion(self, image: ImageKey) -> Deletion | None:
        return await self._database.read(lambda connection: _select_deletion(connection, image))

    async def get_with_deletion(self, key: RecordKey) -> tuple[Record | None, Deletion | None]:
        return await self._database.read(
            lambda connection: (
                self._select(connection, key),
                _select_deletion(connection, key.image),
            )
        )

    async def due_deletions(self, now: datetime, limit: int) -> Sequence[Deletion]:
        statement = f"SELECT {_DELETION} FROM deletions WHERE wake_at <= ? ORDER BY wake_at LIMIT ?"
        return await self._read_rows(statement, (to_micros(now), limit), _deletion_of)

    async def clean_up_deletion(self, image: ImageKey, owner: str) -> Deletion | None:
        def clean_up(connection: sqlite3.Connection) -> Deletion | None:
            now, before = self._clock(), _select_deletion(connection, image)
            if before is not None and before.begun_by(owner):
                return before
            if before is None or before.in_progress or before.wake_at > now:
                return None
            recorded = connection.execute(_SELECT_IMAGE, image).fetchone() is not None
            after = deletions.clean_up(before, now, owner, recorded=recorded)
            if after is None:
                connection.execute(
                    "DELETE FROM deletions WHERE tenant = ? AND image_hash = ?", image
                )
                return None
            _put_deletion(connection, after)
            return after if after.in_progress else None

        return await self._database.write(clean_up, durable=True)

    async def delete_model(self, tenant: str, model: str, limit: int) -> int:
        def delete(connection: sqlite3.Connection) -> int:
            rows = connection.execute(_SELECT_MODEL, (tenant, model, limit)).fetchall()
            for record in map(_record_of, rows):
                connection.executemany(_DELETE_TERM, _term_rows(record))
                connection.execute(f"DELETE FROM records WHERE {_KEY}", _key_of(record.key))
            return len(rows)

        return await self._database.write(delete, durable=True)

    async def ping(self) -> None:
        await self._database.read(lambda connection: connection.execute("SELECT 1 FROM records"))

    def _select(self, connection: sqlite3.Connection, key: RecordKey) -> Record | None:
        row = connection.execute(_SELECT, _key_of(key)).fetchone()
        return None if row is None else _record_of(row, key)

    def _update(self, connection: sqlite3.Connection, state: Record) -> None:
        connection.execute(_UPDATE, (*_state_of(state), *_key_of(state.key)))
        if state.status is Status.SUCCESS:
            connection.executemany(_INSERT_TERM, _term_rows(state))


def _delete_records(connection: sqlite3.Connection, image: ImageKey) -> int:
    """Delete the image's records and their terms. Returns the number of records."""
    rows = connection.execute(_SELECT_IMAGE, image).fetchall()
    for record in map(_record_of, rows):
        connection.executemany(_DELETE_TERM, _term_rows(record))
    connection.execute("DELETE FROM records WHERE tenant = ? AND image_hash = ?", image)
    return len(rows)


def _select_deletion(connection: sqlite3.Connection, image: ImageKey) -> Deletion | None:
    row = connection.execute(
        f"SELECT {_DELETION} FROM deletions WHERE tenant = ? AND image_hash = ?",
        image,
    ).fetchone()
    return None if row is None else _deletion_of(row)


def _put_deletion(connection: sqlite3.Connection, deletion: Deletion) -> None:
    wake_at = to_micros(deletion.wake_at)
    row = (*deletion.image, deletion.token, deletion.stage, wake_at, deletion.owner)
    connection.execute(_PUT_DELETION, row)


def _deletion_of(row: tuple[Any, ...]) -> Deletion:
    tenant, image_hash, token, stage, wake_at, owner = row
    image = ImageKey(tenant, image_hash)
    return Deletion(image, token, Stage(stage), from_micros(wake_at), owner)


def _list_query(wanted: RecordFilter) -> tuple[str, tuple[str, ...]]:
    """The query that reads the most selective index, and the values before the bounds."""
    if wanted.term:
        return _LIST_BY_TERM, (wanted.tenant, wanted.term)
    if wanted.status not in (None, Status.SUCCESS):
        return _LIST_BY_STATUS, (wanted.tenant, wanted.status)
    if wanted.model:
        return _LIST_BY_MODEL, (wanted.tenant, wanted.model)
    return _LIST_BY_AGE, (wanted.tenant,)


def _term_rows(record: Record) -> list[tuple[str, str, str]]:
    sort_key = record.sort_key
    return [(record.key.tenant, term, sort_key) for term in terms_of(record)]


def _select_many(
    connection: sqlite3.Connection, keys: Sequence[RecordKey]
) -> dict[RecordKey, Record]:
    groups: defaultdict[tuple[str, str], dict[str, RecordKey]] = defaultdict(dict)
    for key in keys:
        groups[key.tenant, key.model][key.image_hash] = key
    found: dict[RecordKey, Record] = {}
    for group, wanted in groups.items():
        for row in connection.execute(_SELECT_MANY, (*group, json.dumps(list(wanted)))):
            key = wanted[row[1]]
            found[key] = _record_of(row, key)
    return found


def _key_of(key: RecordKey) -> tuple[str, str, str]:
    return (key.tenant, key.image_hash, key.model)


def _state_of(record: Record) -> tuple[object, ...]:
    """The columns other than the key, in the order of the table."""
    lease = record.lease_expires_at
    return (
        record.status.value,
        _annotations_json(record.annotations) if record.annotations else "[]",
        None if record.error is None else json.dumps(asdict(record.error)),
        record.attempts,
        record.token,
        micros_or_null(lease),
        to_micros(record.created_at),
        to_micros(record.updated_at),
        to_micros(record.submitted_at),
        record.priority.value,
        record.job,
        _annotations_json(record.categories) if record.categories else "[]",
        record.confident,
        record.claims,
        record.output,
        micros_or_null(record.republished_at),
    )


def _annotations_json(annotations: Sequence[Annotation]) -> str:
    # `asdict` copies each value deeply, which costs several times as much.
    return json.dumps(
        [
            {"index": each.index, "label": each.label, "confidence": each.confidence}
            for each in annotations
        ]
    )


def _annotations_of(text: str) -> tuple[Annotation, ...]:
    if text == "[]":
        return ()
    return tuple(Annotation(**each) for each in json.loads(text))


def _record_of(row: tuple[Any, ...], key: RecordKey | None = None) -> Record:
    """`key` is the row's, if the caller has it: making one costs as much as reading the row."""
    tenant, image_hash, model, status, annotations, error, *rest = row
    attempts, token, lease, created, updated, submitted, priority, job, *rest = rest
    categories, confident, claims, output, republished = rest
    return Record(
        key=key or RecordKey(tenant, image_hash, model),
        status=Status(status),
        annotations=_annotations_of(annotations),
        error=None if error is None else RecordError(**json.loads(error)),
        attempts=attempts,
        token=token,
        lease_expires_at=moment_or_none(lease),
        created_at=from_micros(created),
        updated_at=from_micros(updated),
        submitted_at=from_micros(submitted),
        priority=Priority(priority),
        job=job,
        categories=_annotations_of(categories),
        confident=None if confident is None else bool(confident),
        claims=claims,
        output=output,
        republished_at=moment_or_none(republished),
    )
