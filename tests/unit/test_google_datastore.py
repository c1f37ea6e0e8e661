"""Lookups and transactions with a scripted Datastore: answers that the emulators never give."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.cloud.datastore_v1.types import LookupResponse

from core.backends.google import datastore
from core.backends.google.datastore import Datastore, RawMutation
from core.backends.google.entities import Keys, RawEntity, entity_of, set_number
from core.backends.google.queries import query_for
from core.backends.google.records import DatastoreRecordStore
from core.clock import utc_now
from core.domain.records import Record, RecordKey, Status, claim, new_record
from core.errors import Unavailable
from tests.support.scripted_datastore import PROJECT, ScriptedDatastore, served

LARGEST = 1000  # keys in a lookup: https://cloud.google.com/datastore/docs/concepts/limits
CREATED_AT = utc_now()


def key_of(number: int) -> RecordKey:
    return RecordKey("public", f"{number:064x}", "colours@0123456789ab")


def record_of(key: RecordKey) -> Record:
    return new_record(key, CREATED_AT)


class DeferringDatastore(ScriptedDatastore):
    """Has every second record, answers for `at_once` keys of a lookup and defers the others."""

    def __init__(self, at_once: int) -> None:
        super().__init__()
        self.at_once = at_once
        self.requests: list[int] = []
        self.keys = Keys(PROJECT, "", "")

    async def lookup(self, request: Any, context: Any) -> Any:
        keys = list(request.keys)
        names = {key.SerializeToString() for key in keys}
        self.requests.append(len(keys))
        if len(keys) > LARGEST or len(names) < len(keys):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "too many keys, or a key twice")
        response = LookupResponse.pb()()
        for key in keys[: self.at_once]:
            record_key = self.keys.key_of(key)
            if int(record_key.image_hash, 16) % 2:
                response.found.add(entity=entity_of(record_of(record_key), key))
            else:
                response.missing.add(entity={"key": key})
        response.deferred.extend(keys[self.at_once :])
        return response


@pytest.mark.parametrize("at_once", [10_000, 700])
async def test_deferred_keys_are_looked_up_again(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may make a thousand entities of the scripted database slowly.
    monkeypatch.setattr(datastore, "REQUEST_SECONDS", 60.0)
    scripted = DeferringDatastore(at_once)
    keys = [key_of(number) for number in range(2500)]
    async with served(scripted) as database:
        found = await DatastoreRecordStore(database).get_many([*keys, *keys[:10]])
    assert found == {key: record_of(key) for key in keys[1::2]}
    assert max(scripted.requests) <= LARGEST
    assert len(scripted.requests) == (3 if at_once >= LARGEST else 4)


async def test_lookup_without_any_answer_is_unavailable() -> None:
    async with served(DeferringDatastore(0)) as database:
        with pytest.raises(Unavailable):
            await DatastoreRecordStore(database).get_many([key_of(1)])


async def test_store_of_a_closed_database_is_unavailable() -> None:
    async with served(DeferringDatastore(1)) as database:
        store = DatastoreRecordStore(database)
        assert await store.get(key_of(1)) is not None
    with pytest.raises(Unavailable, match="The record store is closed"):
        await store.get(key_of(1))


# --- Transactions: each one that does not commit is rolled back, so that it releases its locks. ---


def entity(database: Datastore, number: int = 1) -> Any:
    made = RawEntity(key=database.keys.path("public", ("Thing", str(number))))
    set_number(made.properties["number"], number)
    return made


class AbortingDatastore(ScriptedDatastore):
    """Aborts the first `aborted` commits, as Datastore does where transactions conflict."""

    def __init__(self, aborted: int) -> None:
        super().__init__()
        self.aborted = aborted

    async def commit(self, request: Any, context: Any) -> Any:
        if self.calls["Commit"] <= self.aborted:
            await context.abort(grpc.StatusCode.ABORTED, "too much contention")
        return await super().commit(request, context)


async def test_committed_transaction_is_not_rolled_back() -> None:
    scripted = ScriptedDatastore()

    async with served(scripted) as database:

        async def insert(transaction: bytes) -> tuple[str, list[Any]]:
            return "done", [RawMutation(insert=entity(database))]

        assert await database.transact(insert) == "done"
    assert scripted.calls == {"BeginTransaction": 1, "Commit": 1}


async def test_refused_transaction_is_rolled_back() -> None:
    scripted = ScriptedDatastore()

    async def refuse(transaction: bytes) -> tuple[None, list[Any]]:
        return None, []

    async with served(scripted) as database:
        await database.transact(refuse)
    assert scripted.calls == {"BeginTransaction": 1, "Rollback": 1}
    assert scripted.rolled_back == [b"1"]


async def test_failed_transaction_is_rolled_back() -> None:
    scripted = ScriptedDatastore()

    async def fail(transaction: bytes) -> tuple[None, list[Any]]:
        raise LookupError("mine")

    async with served(scripted) as database:
        with pytest.raises(LookupError, match="mine"):
            await database.transact(fail)
    assert scripted.calls == {"BeginTransaction": 1, "Rollback": 1}


async def test_aborted_transaction_is_rolled_back_and_run_again() -> None:
    scripted = AbortingDatastore(aborted=2)
    async with served(scripted) as database:

        async def insert(transaction: bytes) -> tuple[bytes, list[Any]]:
            return transaction, [RawMutation(insert=entity(database))]

        assert await database.transact(insert) == b"3"
    assert scripted.rolled_back == [b"1", b"2"]
    assert len(scripted.entities) == 1


async def test_refused_insertion_of_several_entities_is_rolled_back() -> None:
    scripted = ScriptedDatastore()
    async with served(scripted) as database:
        assert await database.insert_together([entity(database, 1)])
        assert scripted.rolled_back == []
        assert not await database.insert_together([entity(database, 2), entity(database, 1)])
    assert scripted.rolled_back == [b"2"]


class DeletingDatastore(ScriptedDatastore):
    """Loses every entity between a transaction's lookup and its commit."""

    deletes = False

    async def commit(self, request: Any, context: Any) -> Any:
        if self.deletes:
            self.entities.clear()
        return await super().commit(request, context)


async def test_change_does_not_bring_a_deleted_record_back() -> None:
    scripted = DeletingDatastore()
    async with served(scripted) as database:
        store = DatastoreRecordStore(database)
        assert await store.create(record_of(key_of(1)))
        scripted.deletes = True
        with pytest.raises(Unavailable):
            await store.change(key_of(1), claim(timedelta(seconds=30)))
        assert await store.get(key_of(1)) is None


class SlowToRollBack(ScriptedDatastore):
    def __init__(self) -> None:
        super().__init__()
        self.answer = asyncio.Event()

    async def rollback(self, request: Any, context: Any) -> Any:
        await self.answer.wait()
        return await super().rollback(request, context)


async def test_close_waits_for_rollbacks_and_callers_do_not() -> None:
    scripted = SlowToRollBack()

    async def refuse(transaction: bytes) -> tuple[None, list[Any]]:
        return None, []

    async with served(scripted) as database:
        async with asyncio.timeout(30):
            await database.transact(refuse)
        assert scripted.rolled_back == []
        asyncio.get_running_loop().call_later(0.05, scripted.answer.set)
    assert scripted.rolled_back == [b"1"]


# --- Requests that fail or hang. ------------------------------------------------------------------


async def find(database: Datastore) -> None:
    await database.find(entity(database).key)


async def find_many(database: Datastore) -> None:
    await database.find_many([entity(database).key])


async def query(database: Datastore) -> None:
    await database.query("public", query_for("Thing"))


async def tenants(database: Datastore) -> None:
    await database.tenants()


async def insert(database: Datastore) -> None:
    await database.insert(entity(database), "public")


async def transact(database: Datastore) -> None:
    async def change(transaction: bytes) -> tuple[None, list[Any]]:
        await database.find_in(entity(database).key, transaction)
        return None, [RawMutation(upsert=entity(database))]

    await database.transact(change)


Work = Callable[[Datastore], Awaitable[None]]


class FailingDatastore(ScriptedDatastore):
    """The first request called `name` gets the status `status`. Without one, none is answered."""

    def __init__(self, name: str, status: grpc.StatusCode | None = None) -> None:
        super().__init__()
        self.name = name
        self.status = status

    def found_by(self, query: Any) -> list[Any]:
        return []

    async def received(self, name: str, context: Any) -> None:
        if name == self.name and self.status is None:
            await asyncio.Event().wait()
        if name == self.name and self.calls[name] == 1:
            await context.abort(self.status, "as scripted")


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
@pytest.mark.parametrize(
    ("name", "work"),
    [("Lookup", find), ("Lookup", find_many), ("RunQuery", query), ("RunQuery", tenants)],
)
async def test_failed_read_is_repeated(name: str, work: Work, status: grpc.StatusCode) -> None:
    """Datastore has brief outages, which callers should not notice."""
    scripted = FailingDatastore(name, status)
    async with served(scripted) as database:
        await work(database)
    assert scripted.calls[name] == 2


TRANSIENT = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.DEADLINE_EXCEEDED,
]


@pytest.mark.parametrize("status", TRANSIENT)
@pytest.mark.parametrize("name", ["BeginTransaction", "Lookup", "Commit"])
async def test_transition_survives_a_transient_error(name: str, status: grpc.StatusCode) -> None:
    scripted = FailingDatastore(name, status)
    async with served(scripted) as database:
        store = DatastoreRecordStore(database)
        assert await store.create(new_record(key_of(1), utc_now()))
        scripted.calls.clear()
        record = await store.change(key_of(1), claim(timedelta(minutes=1)))
    assert record is not None
    assert (record.status, record.token) == (Status.RUNNING, 1)
    assert scripted.calls[name] >= 2


class SilentDatastore(ScriptedDatastore):
    """The first commit takes effect and gets an error."""

    def __init__(self, status: grpc.StatusCode) -> None:
        super().__init__()
        self.status = status
        self.between: Callable[[], None] = lambda: None

    async def commit(self, request: Any, context: Any) -> Any:
        response = await super().commit(request, context)
        if self.calls["Commit"] == 1:
            self.between()
            await context.abort(self.status, "as scripted")
        return response


@pytest.mark.parametrize("status", TRANSIENT)
async def test_commit_that_took_effect_without_an_answer_is_recognised(
    status: grpc.StatusCode,
) -> None:
    """The caller has the claim, and no other delivery waits for the end of its lease."""
    scripted = SilentDatastore(status)
    scripted.calls["Commit"] = 1  # the creation succeeds
    async with served(scripted) as database:
        store = DatastoreRecordStore(database)
        assert await store.create(new_record(key_of(1), utc_now()))
        scripted.calls.clear()
        record = await store.change(key_of(1), claim(timedelta(minutes=1)))
        assert record is not None
        assert record.token == 1
        assert await store.get(key_of(1)) == record
    assert scripted.calls["Commit"] == 1


@pytest.mark.parametrize("ours", [True, False])
async def test_insertion_without_an_answer_is_recognised(ours: bool) -> None:
    """An insertion by another caller is recognised, too."""
    scripted = SilentDatastore(grpc.StatusCode.UNAVAILABLE)
    async with served(scripted) as database:
        await database.register("public")
        scripted.calls.clear()
        if not ours:
            made = entity(database)
            set_number(made.properties["number"], 7)
            name = made.key.SerializeToString(deterministic=True)
            scripted.between = lambda: scripted.entities.update({name: made})
        assert await database.insert(entity(database), "public") is ours
    assert scripted.calls["Commit"] == 2


async def test_transition_gives_up_when_the_error_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datastore, "LAST_PAUSE", 0.01)

    class Down(ScriptedDatastore):
        async def received(self, name: str, context: Any) -> None:
            if name == "BeginTransaction":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "as scripted")

    scripted = Down()
    async with served(scripted) as database:
        with pytest.raises(Unavailable):
            await transact(database)
    assert scripted.calls["BeginTransaction"] == datastore.ATTEMPTS + 1


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("Lookup", find),
        ("Lookup", transact),
        ("RunQuery", query),
        ("BeginTransaction", transact),
        ("Commit", transact),
        ("Commit", insert),
    ],
)
async def test_request_without_an_answer_is_given_up(
    name: str, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datastore, "REQUEST_SECONDS", 0.1)
    monkeypatch.setattr(datastore, "TRANSACTION_SECONDS", 0.5)
    async with served(FailingDatastore(name)) as database, asyncio.timeout(30):
        with pytest.raises(Unavailable):
            await work(database)


async def test_transaction_that_is_aborted_for_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datastore, "TRANSACTION_SECONDS", 0.1)
    scripted = AbortingDatastore(aborted=10_000)
    async with served(scripted) as database, asyncio.timeout(30):
        with pytest.raises(Unavailable):
            await transact(database)
    assert 1 <= scripted.calls["Commit"] < datastore.ATTEMPTS


async def test_close_gives_up_a_rollback_without_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datastore, "REQUEST_SECONDS", 60.0)
    monkeypatch.setattr(datastore, "ROLLBACK_SECONDS", 0.1)
    scripted = FailingDatastore("Rollback")

    async def refuse(transaction: bytes) -> tuple[None, list[Any]]:
        return None, []

    async with asyncio.timeout(30), served(scripted) as database:
        await database.transact(refuse)
