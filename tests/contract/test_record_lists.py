"""Lists of records: order, pages, every filter, and what a page costs."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from core.backends import Backend
from core.domain import records
from core.domain.record_lists import MAX_SCANNED, RecordFilter
from core.domain.records import Annotation, Record, RecordError, RecordKey, Status, new_record
from core.ports import RecordStore
from tests.support.clock import MovableClock
from tests.support.records import claimed, delete_image

MODEL, OTHER_MODEL = "colours@0123456789ab", "vit@abcdef012345"
LEASE = timedelta(seconds=30)
BROKEN = RecordError("undecodable_image", "The image is truncated.", retryable=False)


@pytest.fixture
def store(backend: Backend) -> RecordStore:
    return backend.records


async def created(
    store: RecordStore,
    clock: MovableClock,
    number: int,
    *,
    tenant: str = "public",
    model: str = MODEL,
) -> RecordKey:
    key = RecordKey(tenant, f"{number:064x}", model)
    assert await store.create(new_record(key, clock.move(1)))
    return key


async def succeeded(
    store: RecordStore,
    clock: MovableClock,
    number: int,
    *labels: tuple[str, float],
    categories: Sequence[tuple[str, float]] = (),
    model: str = MODEL,
) -> Record:
    claim = await claimed(store, await created(store, clock, number, model=model), LEASE)
    assert claim is not None
    end = records.complete(claim, _annotations(labels), categories=_annotations(categories))
    after = await store.change(claim.key, end)
    assert after is not None
    return after


def _annotations(pairs: Sequence[tuple[str, float]]) -> tuple[Annotation, ...]:
    return tuple(Annotation(index, *pair) for index, pair in enumerate(pairs, start=1))


async def numbers(
    store: RecordStore, limit: int = 100, after: str = "", **wanted: Any
) -> list[int]:
    page = await store.list(RecordFilter(**{"tenant": "public", **wanted}), limit, after)
    assert page.after == ""
    return [int(record.key.image_hash, 16) for record in page.records]


async def test_list_is_newest_first_and_of_one_tenant(
    store: RecordStore, clock: MovableClock
) -> None:
    for number in (3, 1, 2):
        await created(store, clock, number)
    await created(store, clock, 9, tenant="acme")
    assert await numbers(store) == [2, 1, 3]
    assert await numbers(store, tenant="acme") == [9]
    assert await numbers(store, tenant="nobody") == []


async def test_pages_have_every_record_once_also_of_the_same_instant(
    store: RecordStore, clock: MovableClock
) -> None:
    now = clock()
    for number in range(7):
        assert await store.create(new_record(RecordKey("public", f"{number:064x}", MODEL), now))
    found: list[str] = []
    after, pages = "", 0
    while pages == 0 or after:
        page = await store.list(RecordFilter("public"), 3, after)
        found += [record.key.image_hash for record in page.records]
        after, pages = page.after, pages + 1
    assert sorted(found) == [f"{number:064x}" for number in range(7)]
    assert pages == 3


async def test_record_keeps_its_position_when_it_changes(
    store: RecordStore, clock: MovableClock
) -> None:
    first = await created(store, clock, 1)
    await created(store, clock, 2)
    clock.move(60)
    assert await claimed(store, first, LEASE) is not None
    assert await numbers(store) == [2, 1]


async def test_label_filter_finds_any_stored_label_with_its_confidence(
    store: RecordStore, clock: MovableClock
) -> None:
    await succeeded(store, clock, 1, ("cat", 0.9), ("dog", 0.05))
    await succeeded(store, clock, 2, ("dog", 0.6), ("cat", 0.3))
    await succeeded(store, clock, 3, ("dog", 0.98), ("cat", 0.001))
    await succeeded(store, clock, 4, ("CAT: a 'film' é", 0.008))
    await created(store, clock, 5)
    assert await numbers(store, label="cat") == [2, 1]
    assert await numbers(store, label="dog") == [3, 2, 1]
    assert await numbers(store, label="dog", min_confidence=0.05) == [3, 2, 1]
    assert await numbers(store, label="dog", min_confidence=0.06) == [3, 2]
    assert await numbers(store, label="dog", min_confidence=0.5) == [3, 2]
    assert await numbers(store, label="dog", min_confidence=0.7) == [3]
    assert await numbers(store, label="CAT: a 'film' é") == [4]  # the best one of its image
    assert await numbers(store, label="ca") == []


async def test_category_filter_does_not_find_labels(
    store: RecordStore, clock: MovableClock
) -> None:
    await succeeded(store, clock, 1, ("tabby", 0.9), categories=[("cat", 0.95), ("animal", 0.99)])
    await succeeded(store, clock, 2, ("cat", 0.9), categories=[("toy", 0.4)])
    assert await numbers(store, category="cat") == [1]
    assert await numbers(store, category="toy", min_confidence=0.5) == []
    assert await numbers(store, category="animal", label="tabby") == [1]
    assert await numbers(store, category="animal", label="cat") == []


async def test_status_and_model_filters(store: RecordStore, clock: MovableClock) -> None:
    await succeeded(store, clock, 1, ("cat", 0.9))
    await succeeded(store, clock, 2, ("cat", 0.9), model=OTHER_MODEL)
    failed = await created(store, clock, 3)
    assert await store.change(failed, records.fail_unleased(BROKEN))
    await created(store, clock, 4)
    assert await numbers(store, status=Status.SUCCESS) == [2, 1]
    assert await numbers(store, status=Status.ERROR) == [3]
    assert await numbers(store, status=Status.PENDING) == [4]
    assert await numbers(store, status=Status.QUEUED) == []
    assert await numbers(store, model=OTHER_MODEL) == [2]
    assert await numbers(store, model=MODEL, status=Status.SUCCESS) == [1]
    assert await numbers(store, model=MODEL, status=Status.ERROR) == [3]
    assert await numbers(store, label="cat", model=MODEL) == [1]
    assert await numbers(store, label="cat", status=Status.ERROR) == []


async def test_time_filters_include_since_and_exclude_before(
    store: RecordStore, clock: MovableClock
) -> None:
    times = []
    for number in (1, 2, 3):
        await succeeded(store, clock, number, ("cat", 0.9))
        times.append(clock())
    assert await numbers(store, since=times[1]) == [3, 2]
    assert await numbers(store, before=times[1]) == [1]
    assert await numbers(store, since=times[1], before=times[2]) == [2]
    assert await numbers(store, since=times[1], before=times[2], label="cat") == [2]


async def test_deleted_image_is_in_no_list(store: RecordStore, clock: MovableClock) -> None:
    record = await succeeded(store, clock, 1, ("cat", 0.9), categories=[("animal", 0.9)])
    await delete_image(store, record.key.image)
    for wanted in ({}, {"label": "cat"}, {"category": "animal"}, {"status": Status.SUCCESS}):
        assert await numbers(store, **wanted) == []
    # Another result of the same image at the same time is found by its own labels only.
    assert await store.create(new_record(record.key, record.created_at))
    assert await numbers(store, label="cat") == []


async def test_page_ends_after_a_bounded_number_of_records(
    store: RecordStore, clock: MovableClock
) -> None:
    """The cost of a page has a bound even if almost no record passes the filters."""
    await succeeded(store, clock, 1, ("cat", 0.9), ("dog", 0.05))
    for number in range(2, MAX_SCANNED + 3):
        await succeeded(store, clock, number, ("cat", 0.04))
    wanted = RecordFilter("public", label="cat", category="", min_confidence=0.05)
    page = await store.list(wanted, 1)
    assert page.records == [] and page.after
    page = await store.list(wanted, 1, page.after)
    assert [int(record.key.image_hash, 16) for record in page.records] == [1]


async def test_page_reads_as_many_records_as_it_has(
    store: RecordStore, backend: Backend, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Datastore, each entity of a query's result is one read, whose price does not depend on
    the number of entities that the query does not return."""
    if not hasattr(store, "_datastore"):
        pytest.skip("counts Datastore's reads; `python -m tests.bench.lists` measures SQLite")
    datastore = store._datastore
    query, reads = datastore.query, []

    async def counted(tenant: str, raw: Any) -> list[Any]:
        found: list[Any] = await query(tenant, raw)
        reads.append(len(found))
        return found

    monkeypatch.setattr(datastore, "query", counted)
    for number in range(1, 31):
        await succeeded(store, clock, number, ("cat", 0.9), categories=[("animal", 0.9)])
        if number in (10, 30):
            for wanted in (
                RecordFilter("public"),
                RecordFilter("public", label="cat", min_confidence=0.6),
                RecordFilter("public", category="animal"),
                RecordFilter("public", status=Status.SUCCESS, model=MODEL),
            ):
                reads.clear()
                page = await store.list(wanted, 5)
                assert len(page.records) == 5 and page.after
                assert reads == [5]
