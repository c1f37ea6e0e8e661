"""The reads and writes of a job's items in Datastore, as in docs/cost.md."""

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc.aio
import pytest

from core.backends.google.datastore import Datastore
from core.backends.google.jobs import DatastoreJobStore
from core.domain import jobs
from core.domain.jobs import ItemState, JobItem, JobKey, new_job

KEY = JobKey("public", "7" * 32)
ITEMS = 100
SELDOM = timedelta(hours=1)


@dataclass
class Meter(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # untyped
    """Counts what Datastore bills: keys, entities found (at least one per query), mutations."""

    units: Counter[str] = field(default_factory=Counter)

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], details: Any, request: Any
    ) -> Any:
        call = await continuation(details, request)
        response, raw = await call, type(request).pb(request)
        match details.method.decode().rpartition("/")[2]:
            case "Lookup":
                self.units["reads"] += len(raw.keys)
            case "RunQuery":
                found = len(type(response).pb(response).batch.entity_results)
                # A query for keys costs one read.
                self.units["reads"] += 1 if raw.query.projection else max(1, found)
            case "Commit":
                self.units["writes"] += len(raw.mutations)
        return call

    def taken(self) -> dict[str, float]:
        """The units per item since the last call."""
        units, self.units = self.units, Counter()
        return {name: count / ITEMS for name, count in units.items()}


@pytest.fixture
def meter() -> Meter:
    return Meter()


@pytest.fixture
async def store(
    emulator_addresses: dict[str, str], meter: Meter
) -> AsyncIterator[DatastoreJobStore]:
    address = emulator_addresses["DATASTORE_EMULATOR_HOST"]
    async with (
        grpc.aio.insecure_channel(address, interceptors=[meter]) as channel,
        Datastore(channel, f"test-{secrets.token_hex(4)}", "job store") as datastore,
    ):
        yield DatastoreJobStore(datastore)


async def test_item_costs_two_writes_and_four_reads(store: DatastoreJobStore, meter: Meter) -> None:
    assert await store.create(new_job(KEY, "", "m@0123456789ab", ITEMS, datetime.now(UTC)))
    await store.add_items(KEY, [JobItem(place, f"{place:064x}") for place in range(ITEMS)])
    await store.change(KEY, jobs.seal())
    await store.change(KEY, jobs.start())
    created = meter.taken()
    assert 1 < created["writes"] < 1.1  # one for the item, and a few for the job
    assert created["reads"] < 0.1

    assert len(await store.items(KEY, ITEMS, state=ItemState.OPEN)) == ITEMS
    assert meter.taken() == {"reads": 1}

    for place in range(ITEMS - 1):
        assert await store.complete_item(KEY, place, None, SELDOM) is None
    ended = meter.taken()
    assert 0.9 < ended["writes"] <= 1
    # The item, its job, and the query for open items.
    assert 2.9 < ended["reads"] <= 3


async def test_count_costs_two_reads_for_any_number_of_items(
    store: DatastoreJobStore, meter: Meter
) -> None:
    assert await store.create(new_job(KEY, "", "m@0123456789ab", ITEMS, datetime.now(UTC)))
    done = [JobItem(place, "", state=ItemState.SUCCEEDED) for place in range(ITEMS - 1)]
    await store.add_items(KEY, [*done, JobItem(ITEMS - 1, "")])
    await store.change(KEY, jobs.seal())
    meter.taken()
    assert await store.refresh_counts(KEY) is not None
    # Two counts, the query for open items, and the job: before, under the lock, in the transaction.
    assert meter.taken() == {"reads": 6 / ITEMS, "writes": 1 / ITEMS}
