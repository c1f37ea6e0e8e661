"""Which changes are on disk before their caller goes on (P1), and which a power loss may undo."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from core.api_keys import ApiKey
from core.backends.embedded import keys, records, webhooks
from core.backends.embedded.database import Database, Schema, Work
from core.identity import ALL_SCOPES
from core.priority import Priority
from core.records import Annotation, RecordError, RecordKey, Status, new_record
from core.webhooks import JOB_EVENTS, MOST_WEBHOOKS, Change, Delivery, Event, Webhook
from tests.contract.clock import MovableClock

T = TypeVar("T")

KEY = RecordKey("public", "ab" * 32, "colours@0123456789ab")
ERROR = RecordError("model_unavailable", "It failed.", retryable=True)
FULL = 2  # as SQLite answers PRAGMA synchronous: https://sqlite.org/pragma.html#pragma_synchronous
MINUTE = timedelta(minutes=1)


class ObservedDatabase(Database):
    """Asks SQLite in each write whether its commit will wait for the disk."""

    def __init__(self, path: Path, schema: Schema) -> None:
        super().__init__(path, schema)
        self.modes: list[int] = []

    async def write(self, work: Work[T], *, durable: bool) -> T:
        def observed(connection: sqlite3.Connection) -> T:
            (mode,) = connection.execute("PRAGMA synchronous").fetchone()
            self.modes.append(mode)
            return work(connection)

        return await super().write(observed, durable=durable)

    async def syncs(self, change: Awaitable[object]) -> bool:
        """Whether `change`, which must be granted, is on disk when it returns."""
        self.modes.clear()
        assert await change
        (mode,) = self.modes
        return mode == FULL


@asynccontextmanager
async def observed(path: Path, schema: Schema) -> AsyncIterator[ObservedDatabase]:
    database = await ObservedDatabase.open(path, schema)
    assert isinstance(database, ObservedDatabase)
    try:
        yield database
    finally:
        await database.close()


async def test_what_a_client_is_promised_about_a_record(tmp_path: Path) -> None:
    clock = MovableClock()
    async with observed(tmp_path / "records.db", records.SCHEMA) as database:
        store, syncs = records.SqliteRecordStore(database, clock), database.syncs
        assert await syncs(store.create(new_record(KEY, clock(), Priority.LOW)))
        assert await syncs(store.want(KEY, Priority.HIGH))
        assert not await syncs(store.advance(KEY, Status.PENDING, Status.QUEUED))
        clock.move(1)
        assert not await syncs(store.touch(KEY, clock()))
        assert not await syncs(store.claim(KEY, MINUTE))
        clock.move(61)
        claim = await store.claim(KEY, MINUTE)
        assert claim is not None
        assert not await syncs(store.release(claim, ERROR))
        assert await syncs(store.fail(KEY, ERROR))
        assert await syncs(store.retry(KEY))
        claim = await store.claim(KEY, MINUTE)
        assert claim is not None
        assert await syncs(store.complete(claim, [Annotation(1, "red", 0.75)]))
        assert await syncs(store.delete_image(KEY.tenant, KEY.image_hash))


async def test_what_lets_a_key_in_or_keeps_it_out(tmp_path: Path) -> None:
    clock = MovableClock()
    key = ApiKey("key000000001", "acme", "laptop", ALL_SCOPES, bytes(32), clock())
    async with observed(tmp_path / "keys.db", keys.SCHEMA) as database:
        store, syncs = keys.SqliteKeyStore(database, clock), database.syncs
        assert await syncs(store.create(key))
        assert not await syncs(store.touch(key.id, clock()))
        assert await syncs(store.rotate(key.id, bytes([1]) * 32, MINUTE))
        assert await syncs(store.revoke(key.id))


async def test_whom_a_webhook_tells(tmp_path: Path) -> None:
    clock = MovableClock()
    secret, url = bytes(32), "https://example.com/hooks"
    webhook = Webhook(f"wh_{1:024x}", "acme", "", url, JOB_EVENTS, secret, clock())
    async with observed(tmp_path / "webhooks.db", webhooks.SCHEMA) as database:
        store, syncs = webhooks.SqliteWebhookStore(database, clock), database.syncs
        assert await syncs(store.create(webhook, MOST_WEBHOOKS))
        assert await syncs(store.rotate("acme", webhook.id, bytes([1]) * 32, MINUTE))
        told, gone = Delivery(clock(), Event.JOB_FAILED, 200), Delivery(clock(), Event.TEST, 410)
        assert not await syncs(store.note("acme", webhook.id, url, told))
        assert await syncs(store.note("acme", webhook.id, url, gone, gone="It answered 410."))
        assert await syncs(store.change("acme", webhook.id, Change(enabled=True)))
        assert await syncs(store.delete("acme", webhook.id))
