"""Google's backend: Datastore, Cloud Storage and Pub/Sub, real or emulated.

Only `endpoints` depends on which of the two it is.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

from core.backends import Access, Backend
from core.backends.google.blobs import CloudBlobStore
from core.backends.google.datastore import Datastore
from core.backends.google.dead_letters import DatastoreDeadLetterStore
from core.backends.google.endpoints import Endpoints, open_endpoints
from core.backends.google.jobs import DatastoreJobStore
from core.backends.google.keys import (
    DatastoreAllowanceStore,
    DatastoreKeyStore,
    DatastoreUsageStore,
)
from core.backends.google.models import DatastoreModelStore
from core.backends.google.objects import CloudObjectSource
from core.backends.google.publisher import PubSubPublisher
from core.backends.google.records import DatastoreRecordStore
from core.backends.google.webhooks import DatastoreWebhookStore
from core.backends.key_secret import local_key_secrets
from core.clock import Clock, utc_now
from core.ports import UsageStore
from core.settings import Settings

NAMESPACE_PREFIX = ""  # prefix of all namespaces. Tests that share a database set it


@asynccontextmanager
async def open_backend(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[Backend]:
    """The ports, with one client each, created in the running loop and closed at the end.

    Sends no request, so that a process can start while a service is down; readiness reports that.
    Raises Unavailable if there are no credentials.
    """
    endpoints = await open_endpoints(settings, clock)
    async with AsyncExitStack() as stack:
        open_datastore = _datastore_opener(stack, endpoints, settings)
        records = DatastoreRecordStore(await open_datastore("record store"), clock)
        dead_letters = DatastoreDeadLetterStore(await open_datastore("dead-letter store"), clock)
        jobs = DatastoreJobStore(await open_datastore("job store"), clock, settings.jobs)
        webhooks = DatastoreWebhookStore(await open_datastore("webhook store"), clock)
        models = DatastoreModelStore(await open_datastore("model store"), clock)
        pubsub_channel = endpoints.pubsub_channel()
        stack.push_async_callback(pubsub_channel.close)
        publisher = PubSubPublisher(pubsub_channel, endpoints.project, settings.topic_prefix)
        stack.push_async_callback(publisher.close)
        client = await asyncio.to_thread(endpoints.storage_client)
        blobs = CloudBlobStore(client, settings.bucket, endpoints.links)
        stack.push_async_callback(blobs.close)
        objects = None
        if settings.import_buckets:
            objects = CloudObjectSource(await asyncio.to_thread(endpoints.storage_client))
            stack.push_async_callback(objects.close)
        yield Backend(
            records,
            blobs,
            publisher,
            dead_letters,
            jobs,
            webhooks,
            models,
            endpoints.local_links,
            objects,
        )


@asynccontextmanager
async def open_usage(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[UsageStore]:
    """Usage in Datastore. Raises Unavailable if there are no credentials."""
    async with _databases(settings, clock) as open_datastore:
        yield DatastoreUsageStore(await open_datastore("usage store"), clock)


@asynccontextmanager
async def open_access(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[Access]:
    """Keys, limits and usage in Datastore. Raises Unavailable if there are no credentials.

    Keys and limits may have a separate database: IAM can keep the worker out of a database, and not
    out of a namespace. Usage is in the database of the worker, which deletes old counts.
    """
    secrets = await asyncio.to_thread(local_key_secrets, settings)
    async with _databases(settings, clock) as open_datastore:
        keys = await open_datastore("key store", settings.datastore_keys_database)
        yield Access(
            DatastoreKeyStore(keys, clock),
            DatastoreAllowanceStore(keys, clock),
            DatastoreUsageStore(await open_datastore("usage store"), clock),
            secrets,
        )


class _DatastoreOpener(Protocol):
    async def __call__(self, part: str, database: str = "") -> Datastore: ...


@asynccontextmanager
async def _databases(settings: Settings, clock: Clock) -> AsyncIterator[_DatastoreOpener]:
    """What `_datastore_opener` returns, without the rest of the backend."""
    endpoints = await open_endpoints(settings, clock)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(endpoints.links.close)
        yield _datastore_opener(stack, endpoints, settings)


def _datastore_opener(
    stack: AsyncExitStack, endpoints: Endpoints, settings: Settings
) -> _DatastoreOpener:
    """A function that opens a database for a store, whose name errors use.

    An empty `database` is DATASTORE_DATABASE. All share one channel; `stack` closes them.
    """
    channel = endpoints.datastore_channel()
    stack.push_async_callback(channel.close)

    async def open_datastore(part: str, database: str = "") -> Datastore:
        datastore = Datastore(
            channel,
            endpoints.project,
            part,
            database=database or settings.datastore_database,
            namespace_prefix=NAMESPACE_PREFIX,
        )
        return await stack.enter_async_context(datastore)

    return open_datastore
