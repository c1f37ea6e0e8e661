"""Webhooks in SQLite, in a separate file that only its owner may read: it holds their secrets."""

import sqlite3
from typing import Any

from core.backends.embedded.database import Schema
from core.backends.embedded.store import SqliteStore
from core.backends.embedded.timestamps import from_micros, micros_or_null, moment_or_none, to_micros
from core.domain.webhooks import Delivery, Event, Webhook, WebhookKey

SCHEMA = Schema(
    version=2,
    statements=(
        """
        CREATE TABLE webhooks (
            tenant              TEXT NOT NULL,
            id                  TEXT NOT NULL,
            owner               TEXT NOT NULL,
            url                 TEXT NOT NULL,
            events              TEXT NOT NULL,      -- separated by spaces
            secret              BLOB NOT NULL,
            created_at          INTEGER NOT NULL,   -- microseconds since 1970, as all times
            description         TEXT NOT NULL,
            rotated_at          INTEGER,
            previous_secret     BLOB,
            previous_expires_at INTEGER,
            disabled_at         INTEGER,
            disabled_reason     TEXT NOT NULL,
            delivered_at        INTEGER,            -- the last delivery, as these four
            delivered_event     TEXT,
            delivered_status    INTEGER,
            delivered_error     TEXT,
            PRIMARY KEY (tenant, id)
        ) WITHOUT ROWID
        """,
    ),
)

_COLUMNS = (
    "tenant, id, owner, url, events, secret, created_at, description, rotated_at,"
    " previous_secret, previous_expires_at, disabled_at, disabled_reason,"
    " delivered_at, delivered_event, delivered_status, delivered_error"
)
# ruff's S608 warns of values in SQL text; these are constants.
_SELECT = f"SELECT {_COLUMNS} FROM webhooks WHERE tenant = ?"
_VALUES = "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT = f"INSERT INTO webhooks ({_COLUMNS}) {_VALUES} ON CONFLICT DO NOTHING"
_REPLACE = f"REPLACE INTO webhooks ({_COLUMNS}) {_VALUES}"


class SqliteWebhookStore(SqliteStore[WebhookKey, Webhook]):
    """`core.ports.WebhookStore`. `create` and `delete` are fsynced."""

    async def create(self, webhook: Webhook, most: int) -> bool:
        def insert(connection: sqlite3.Connection) -> bool:
            (count,) = connection.execute(
                "SELECT count(*) FROM webhooks WHERE tenant = ?", (webhook.tenant,)
            ).fetchone()
            return count < most and connection.execute(_INSERT, _row_of(webhook)).rowcount == 1

        return await self._database.write(insert, durable=True)

    async def list(self, tenant: str) -> list[Webhook]:
        return await self._read_rows(f"{_SELECT} ORDER BY created_at, id", (tenant,), _webhook_of)

    async def delete(self, key: WebhookKey) -> bool:
        return await self._write_row("DELETE FROM webhooks WHERE tenant = ? AND id = ?", key)

    def _select(self, connection: sqlite3.Connection, key: WebhookKey) -> Webhook | None:
        row = connection.execute(f"{_SELECT} AND id = ?", key).fetchone()
        return None if row is None else _webhook_of(row)

    def _update(self, connection: sqlite3.Connection, state: Webhook) -> None:
        connection.execute(_REPLACE, _row_of(state))


def _row_of(webhook: Webhook) -> tuple[object, ...]:
    """In the order of the table."""
    last = webhook.last_delivery
    return (
        webhook.tenant,
        webhook.id,
        webhook.owner,
        webhook.url,
        " ".join(sorted(webhook.events)),
        webhook.secret,
        to_micros(webhook.created_at),
        webhook.description,
        micros_or_null(webhook.rotated_at),
        webhook.previous_secret,
        micros_or_null(webhook.previous_expires_at),
        micros_or_null(webhook.disabled_at),
        webhook.disabled_reason,
        *(
            (None, None, None, None)
            if last is None
            else (to_micros(last.at), last.event.value, last.status, last.error)
        ),
    )


def _webhook_of(row: tuple[Any, ...]) -> Webhook:
    tenant, id_, owner, url, events, secret, created, description, *rest = row
    rotated, previous, previous_end, disabled, reason, delivered, event, status, error = rest
    return Webhook(
        id=id_,
        tenant=tenant,
        owner=owner,
        url=url,
        events=frozenset(Event(event) for event in events.split()),
        secret=secret,
        created_at=from_micros(created),
        description=description,
        rotated_at=moment_or_none(rotated),
        previous_secret=previous,
        previous_expires_at=moment_or_none(previous_end),
        disabled_at=moment_or_none(disabled),
        disabled_reason=reason,
        last_delivery=(
            None
            if delivered is None
            else Delivery(from_micros(delivered), Event(event), status, error)
        ),
    )
