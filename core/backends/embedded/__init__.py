"""The embedded backend: records and queue in SQLite, blobs as files, no service to install.

Several processes may open one data folder at the same time. A separate process delivers the
published messages: `python -m core.backends.embedded.queue`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from core.backends import Access, Backend
from core.backends.data_folder import opened_folder
from core.backends.embedded import keys, models, queue_store, records, webhooks
from core.backends.embedded.blobs import FileBlobStore
from core.backends.embedded.database import Database, Schema
from core.backends.embedded.dead_letters import SqliteDeadLetterStore
from core.backends.embedded.jobs import SqliteJobStore
from core.backends.embedded.keys import (
    SqliteAllowanceStore,
    SqliteKeyStore,
    SqliteUsageStore,
)
from core.backends.embedded.models import SqliteModelStore
from core.backends.embedded.publisher import SqlitePublisher
from core.backends.embedded.queue_store import QueueStore
from core.backends.embedded.records import SqliteRecordStore
from core.backends.embedded.wake_up import WakeUpSender
from core.backends.embedded.webhooks import SqliteWebhookStore
from core.backends.key_secret import local_key_secrets
from core.backends.links import LinkSigner, shared_secret
from core.clock import Clock, utc_now
from core.ports import UsageStore
from core.settings import Settings

KEYS, RECORDS, WEBHOOKS = "keys.db", "records.db", "webhooks.db"


@asynccontextmanager
async def open_backend(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[Backend]:
    """The ports on `settings.data_dir`, which is created if absent.

    Raises Unavailable if the folder or a database in it cannot be used.
    """
    secret = await asyncio.to_thread(_prepare, settings.data_dir)
    links = LinkSigner(secret, settings.public_url)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(_open(settings, RECORDS, records.SCHEMA))
        store = await stack.enter_async_context(open_queue_store(settings))
        webhook_db = await stack.enter_async_context(_open(settings, WEBHOOKS, webhooks.SCHEMA))
        model_db = await stack.enter_async_context(_open(settings, "models.db", models.SCHEMA))
        blobs = FileBlobStore(settings.data_dir / "blobs", links, clock)
        stack.push_async_callback(blobs.close)
        await blobs.remove_abandoned()
        wake_up = await asyncio.to_thread(WakeUpSender, settings.data_dir)
        stack.callback(wake_up.close)
        yield Backend(
            SqliteRecordStore(database, clock),
            blobs,
            SqlitePublisher(store, wake_up, clock),
            SqliteDeadLetterStore(database, clock),
            SqliteJobStore(database, clock, settings.jobs),
            SqliteWebhookStore(webhook_db, clock),
            SqliteModelStore(model_db, clock),
            links,
        )


@asynccontextmanager
async def open_usage(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[UsageStore]:
    """The usage store, in the file of the keys. Raises Unavailable."""
    async with _open(settings, KEYS, keys.SCHEMA) as database:
        yield SqliteUsageStore(database, clock)


@asynccontextmanager
async def open_access(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[Access]:
    """Keys, limits and usage, in a separate file. Raises Unavailable."""
    secrets = await asyncio.to_thread(local_key_secrets, settings)
    async with _open(settings, KEYS, keys.SCHEMA) as database:
        yield Access(
            SqliteKeyStore(database, clock),
            SqliteAllowanceStore(database, clock),
            SqliteUsageStore(database, clock),
            secrets,
        )


@asynccontextmanager
async def open_queue_store(settings: Settings) -> AsyncIterator[QueueStore]:
    """The tables of the queue only. Raises Unavailable."""
    async with _open(settings, "queue.db", queue_store.SCHEMA) as database:
        yield QueueStore(database)


@asynccontextmanager
async def _open(settings: Settings, name: str, schema: Schema) -> AsyncIterator[Database]:
    database = await Database.open(settings.data_dir / name, schema)
    try:
        yield database
    finally:
        await database.close()


def _prepare(data_dir: Path) -> bytes:
    """Create the folders; the secret that signs links."""
    with opened_folder(data_dir):
        (data_dir / "blobs").mkdir(mode=0o700, exist_ok=True)
        # It holds secrets in plain text. SQLite creates its other files with the mode of this one.
        (data_dir / WEBHOOKS).touch(mode=0o600)
        return shared_secret(data_dir / "link.key")
