"""docs/cost.md counts Datastore's operations: here they are counted on the code that makes them."""

import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc.aio

from core.backends.google.datastore import Datastore
from core.backends.google.records import DatastoreRecordStore
from core.clock import utc_now
from core.domain.records import Annotation, RecordKey, Status, advance, complete, new_record
from docs.figures import cost, scale
from docs.figures.measured import read_measured
from tests.support.records import claimed
from tests.support.settings import isolated_settings


class Counting(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # grpc has no types
    """Looked-up keys, and changed entities by whether the index holds them afterwards."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    async def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], details: Any, request: Any
    ) -> Any:
        method = details.method
        name = (method.decode() if isinstance(method, bytes) else method).rpartition("/")[2]
        if name == "Lookup":
            self.seen["reads"] += len(request.keys)
        elif name == "Commit":
            for mutation in request.mutations:
                self.seen["writes"] += 1
                entity = getattr(mutation, mutation._pb.WhichOneof("operation"))
                self.seen["indexed"] += "unfinished_at" in entity.properties
        return await continuation(details, request)


async def test_one_new_image_makes_the_operations_that_are_charged(
    emulator_addresses: dict[str, str],
) -> None:
    counting = Counting()
    address = emulator_addresses["DATASTORE_EMULATOR_HOST"]
    prefix = f"cost-{uuid.uuid4().hex[:8]}-"
    settings = isolated_settings()
    key = RecordKey("public", "ab" * 32, "model@0123456789ab")
    async with (
        grpc.aio.insecure_channel(address, interceptors=[counting]) as channel,
        Datastore(channel, "demo-glimpse", "record store", namespace_prefix=prefix) as datastore,
    ):
        store = DatastoreRecordStore(datastore)
        # A tenant's first image also registers the tenant.
        await store.create(new_record(RecordKey("public", "cd" * 32, key.model), utc_now()))
        counting.seen.clear()

        # The way of one image, as app/images/submission.py and worker/tasks/classify_image.py go.
        assert await store.get(key) is None
        assert await store.create(new_record(key, utc_now()))
        assert await store.deletion(key.image) is None
        assert (await store.get_with_deletion(key))[0] is not None
        assert await store.change(key, advance(Status.PENDING, Status.QUEUED))
        claim = await claimed(store, key, settings.lease)
        assert claim is not None
        assert await store.change(claim.key, complete(claim, [Annotation(1, "cat", 0.9)]))

    questions = 2  # that the client asks meanwhile
    work = cost.bundled_work(read_measured())
    assert counting.seen["reads"] + questions == work.reads
    assert counting.seen["writes"] == work.writes
    assert counting.seen["indexed"] == scale.INDEXED_WRITES
