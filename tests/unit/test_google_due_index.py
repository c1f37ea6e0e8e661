"""The scheduler's and reconciler's queries with ten thousand tenants, counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from core.backends.google import due_index
from core.backends.google.datastore import Datastore
from core.backends.google.due_index import MAX_TENANTS, SHARDS, DueIndex, Mark, in_turns
from core.backends.google.entities import TENANT_KIND, RawEntity, entity_of
from core.backends.google.jobs import DatastoreJobStore
from core.backends.google.records import DatastoreRecordStore
from core.domain.jobs import JobKey, new_job
from core.domain.records import Record, RecordKey, new_record, touch
from tests.support.clock import MovableClock
from tests.support.scripted_datastore import ScriptedDatastore, served

TENANTS = 10_000
MODEL = "m@0123456789ab"


class QueryableDatastore(ScriptedDatastore):
    """Answers queries by ranges of one property, in its order, within a namespace."""

    def __init__(self) -> None:
        super().__init__()
        self.namespace = ""

    def put(self, entity: Any) -> None:
        self.entities[entity.key.SerializeToString(deterministic=True)] = entity

    async def run_query(self, request: Any, context: Any) -> Any:
        self.namespace = request.partition_id.namespace_id
        return await super().run_query(request, context)

    def found_by(self, query: Any) -> list[Any]:
        name = query.order[0].property.name
        filters = [each.property_filter for each in query.filter.composite_filter.filters]
        bounds = [(each.op, each.value.string_value) for each in filters]
        found = []
        for entity in self.entities.values():
            key = entity.key
            if key.partition_id.namespace_id != self.namespace or name not in entity.properties:
                continue
            if key.path[-1].kind != query.kind[0].name:
                continue
            text = entity.properties[name].string_value
            least = [value for op, value in bounds if op == 4]  # GREATER_THAN_OR_EQUAL
            below = [value for op, value in bounds if op == 1]  # LESS_THAN
            if all(text >= value for value in least) and all(text < value for value in below):
                found.append(entity)
        found.sort(
            key=lambda each: (
                each.properties[name].string_value,
                each.properties[name].timestamp_value.ToMicroseconds(),
            )
        )
        return found[: query.limit.value or None]


def record_of(tenant: str, clock: MovableClock) -> Record:
    return new_record(RecordKey(tenant, "a" * 64, MODEL), clock())


def tenant_of(number: int) -> str:
    return f"tenant-{number}"


@contextmanager
def filled(
    scripted: QueryableDatastore, database: Datastore, clock: MovableClock, *, stale: int
) -> Iterator[None]:
    """Ten thousand tenants, of which so many have a stale record."""
    index = DueIndex(database, "records", clock)
    for number in range(TENANTS):
        tenant = tenant_of(number)
        scripted.put(RawEntity(key=database.keys.path("_tenants", (TENANT_KIND, tenant))))
        if number < stale:
            record = record_of(tenant, clock)
            scripted.put(entity_of(record, database.keys.record(record.key)))
            scripted.put(index._entity_of(Mark(tenant, clock(), clock())))
    yield


async def test_idle_tenants_cost_no_query() -> None:
    """P4: eight queries for each kind of work, and one for each tenant that has some."""
    scripted, clock = QueryableDatastore(), MovableClock()
    async with served(scripted) as database:
        records = DatastoreRecordStore(database, clock)
        jobs = DatastoreJobStore(database, clock)
        with filled(scripted, database, clock, stale=5):
            now = clock.move(700)
            found = await records.stale(now - timedelta(seconds=600), 100)
            assert {record.key.tenant for record in found} == {tenant_of(n) for n in range(5)}
            assert scripted.calls["RunQuery"] == SHARDS + 5
            scripted.calls.clear()
            assert await jobs.due(now, 100) == []
            assert await records.due_deletions(now, 100) == []
            assert scripted.calls == {"RunQuery": 2 * SHARDS}


async def test_job_that_waits_for_its_time_costs_no_query() -> None:
    scripted, clock = QueryableDatastore(), MovableClock()
    async with served(scripted) as database:
        jobs = DatastoreJobStore(database, clock)
        await jobs.create(new_job(JobKey("acme", "a" * 32), "", MODEL, 1, clock()))
        scripted.calls.clear()
        assert await jobs.due(clock.move(60), 10) == []
        assert scripted.calls == {"RunQuery": SHARDS}
        scripted.calls.clear()
        assert len(await jobs.due(clock.move(3600), 10)) == 1
        assert scripted.calls["RunQuery"] == SHARDS + 1


async def test_run_visits_a_bounded_number_of_tenants_and_the_next_run_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(due_index, "MAX_TENANTS", 20)
    scripted, clock = QueryableDatastore(), MovableClock()
    async with served(scripted) as database:
        records = DatastoreRecordStore(database, clock)
        with filled(scripted, database, clock, stale=60):
            before = clock.move(700) - timedelta(seconds=600)
            seen: set[str] = set()
            for _ in range(12):
                scripted.calls.clear()
                for record in await records.stale(before, 10):
                    assert await records.change(record.key, touch(before))
                    seen.add(record.key.tenant)
                assert scripted.calls["RunQuery"] <= SHARDS + 20
            assert len(seen) == 60
    assert MAX_TENANTS == 200


def test_turns_take_the_first_of_each_tenant_first() -> None:
    assert in_turns([[1, 2, 3], [4], [5, 6]], 4) == [1, 4, 5, 2]
    assert in_turns([], 4) == []
    assert in_turns([[1, 2]], 9) == [1, 2]


# --- Marks ----------------------------------------------------------------------------------------


async def test_mark_is_not_raised_over_what_a_writer_noted_meanwhile() -> None:
    scripted, clock = QueryableDatastore(), MovableClock()
    async with served(scripted) as database:
        reader, writer = (DueIndex(database, "jobs", clock) for _ in range(2))
        await writer.note("acme", clock())
        clock.move(1000)
        (mark,) = await reader.due(clock())
        await writer.note("acme", clock() + timedelta(seconds=5))
        await reader.settle(mark, None)
        clock.move(10)
        (after,) = await reader.due(clock())
        assert after.moment == mark.moment


async def test_mark_is_not_raised_beyond_the_present_while_a_writer_may_rely_on_it() -> None:
    """A writer notes nothing again for some seconds: its work must be found nevertheless."""
    scripted, clock = QueryableDatastore(), MovableClock()
    async with served(scripted) as database:
        reader, writer = (DueIndex(database, "jobs", clock) for _ in range(2))
        await writer.note("acme", clock())
        (mark,) = await reader.due(clock.move(10))
        await reader.settle(mark, clock() + timedelta(hours=1))
        scripted.calls.clear()
        await writer.note("acme", clock())
        assert scripted.calls == {}
        assert [each.tenant for each in await reader.due(clock.move(1))] == ["acme"]
        (found,) = await reader.due(clock.move(due_index.QUIET.total_seconds()))
        await reader.settle(found, None)
        assert await reader.due(clock.move(10**6)) == []


async def test_process_notes_the_same_tenant_once_in_a_while() -> None:
    scripted, clock = QueryableDatastore(), MovableClock()
    async with served(scripted) as database:
        index = DueIndex(database, "records", clock)
        await index.note("acme", clock())
        for _ in range(100):
            await index.note("acme", clock())
        assert scripted.calls["Commit"] == 1
        await index.note("acme", clock() - timedelta(seconds=1))
        assert scripted.calls["Commit"] == 2
        clock.move(due_index.REMEMBERED.total_seconds())
        await index.note("acme", clock())
        assert scripted.calls["Commit"] == 3
