"""Look-ups of many keys, against a Datastore that answers as the real one may: the emulators don't.

https://cloud.google.com/datastore/docs/reference/data/rpc/google.datastore.v1#lookupresponse
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from google.cloud.datastore_v1.types import LookupRequest, LookupResponse

from core.backends.google.datastore import Datastore
from core.backends.google.entities import Keys, entity_of
from core.backends.google.records import DatastoreRecordStore
from core.clock import utc_now
from core.domain.records import Record, RecordKey, new_record
from core.errors import Unavailable

LARGEST = 1000  # keys that a look-up may have
PROJECT = "demo-glimpse"


def key_of(number: int) -> RecordKey:
    return RecordKey("public", f"{number:064x}", "colours@0123456789ab")


class LazyDatastore:
    """Has every second record, answers for a few keys at a time and puts the others off."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.requests: list[int] = []
        self.keys = Keys(PROJECT, "", "")

    async def lookup(self, raw: bytes, context: Any) -> bytes:
        request = LookupRequest.deserialize(raw)
        keys = [key._pb for key in request.keys]
        names = {key.SerializeToString() for key in keys}
        self.requests.append(len(keys))
        if len(keys) > LARGEST or len(names) < len(keys):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "too many keys, or one twice")
        response = LookupResponse.pb()()
        for key in keys[: self.at_once]:
            record_key = self.keys.key_of(key)
            if int(record_key.image_hash, 16) % 2:
                response.found.add(entity=entity_of(record_of(record_key), key))
            else:
                response.missing.add(entity={"key": key})
        response.deferred.extend(keys[self.at_once :])
        return bytes(response.SerializeToString())


def record_of(key: RecordKey) -> Record:
    return new_record(key, EPOCH)


EPOCH = utc_now()


@asynccontextmanager
async def served(datastore: LazyDatastore) -> AsyncIterator[DatastoreRecordStore]:
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(datastore.lookup)
    name = "google.datastore.v1.Datastore"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(name, {"Lookup": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
            Datastore(channel, PROJECT, "record store") as database,
        ):
            yield DatastoreRecordStore(database)
    finally:
        await server.stop(None)


@pytest.mark.parametrize("at_once", [10_000, 700])
async def test_keys_are_asked_for_until_each_is_answered(at_once: int) -> None:
    datastore = LazyDatastore(at_once)
    keys = [key_of(number) for number in range(2500)]
    async with served(datastore) as store:
        found = await store.get_many([*keys, *keys[:10]])
    assert found == {key: record_of(key) for key in keys[1::2]}
    assert max(datastore.requests) <= LARGEST
    assert len(datastore.requests) == (3 if at_once >= LARGEST else 4)


async def test_a_server_that_answers_nothing_is_unavailable() -> None:
    async with served(LazyDatastore(0)) as store:
        with pytest.raises(Unavailable):
            await store.get_many([key_of(1)])


async def test_a_store_whose_database_is_closed_is_unavailable() -> None:
    async with served(LazyDatastore(1)) as store:
        assert await store.get(key_of(1)) is not None
    with pytest.raises(Unavailable, match="The record store is closed"):
        await store.get(key_of(1))
