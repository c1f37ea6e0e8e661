"""Every method of the JobStore port, on every backend."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from core.backends import Backend, open_backend
from core.domain import jobs
from core.domain.jobs import (
    CANCELLED,
    Counts,
    ItemState,
    Job,
    JobFilter,
    JobItem,
    JobKey,
    JobStatus,
    new_job,
)
from core.domain.policy import MAX_JOB_ITEMS
from core.domain.priority import Priority
from core.domain.records import RecordError
from core.domain.transitions import transition
from core.ports import JobStore
from core.settings import Settings
from tests.support.clock import MovableClock

MODEL = "colours@0123456789ab"
OWNER = "k3y0wn3r"
PUBLIC = JobFilter("public")
ALWAYS, SELDOM = timedelta(0), timedelta(seconds=5)
BROKEN = RecordError("undecodable_image", "The image is truncated: ä.", retryable=False)


@pytest.fixture
def store(backend: Backend) -> JobStore:
    return backend.jobs


@pytest.fixture
async def stores(
    backend: Backend, settings: Settings, clock: MovableClock
) -> AsyncIterator[Sequence[JobStore]]:
    """The stores of two processes."""
    async with open_backend(settings, clock) as other:
        yield backend.jobs, other.jobs


def key_of(number: int = 1, *, tenant: str = "public") -> JobKey:
    return JobKey(tenant, f"{number:032x}")


def job_of(clock: MovableClock, number: int = 1, total: int = 3, *, owner: str = OWNER) -> Job:
    return new_job(key_of(number), owner, MODEL, total, clock())


def items_of(total: int, begin: int = 0) -> list[JobItem]:
    return [JobItem(place, f"{place:064x}", f"{place}.jpg") for place in range(begin, total)]


async def sealed(store: JobStore, job: Job, items: Sequence[JobItem] | None = None) -> Job:
    """Store a job like the API."""
    assert await store.create(job)
    await store.add_items(job.key, items_of(job.counts.total) if items is None else items)
    after = await store.change(job.key, jobs.seal())
    assert after is not None
    return after


async def running(store: JobStore, job: Job, items: Sequence[JobItem] | None = None) -> Job:
    await sealed(store, job, items)
    after = await store.change(job.key, jobs.start())
    assert after is not None
    return after


async def stored(store: JobStore, key: JobKey) -> Job:
    job = await store.get(key)
    assert job is not None
    return job


async def test_unknown_job_is_none_and_refuses_changes(
    store: JobStore, clock: MovableClock
) -> None:
    key = key_of()
    assert await store.get(key) is None
    assert await store.get_many([key]) == {}
    assert await store.list(PUBLIC, 10) == []
    assert await store.items(key, 10) == []
    assert await store.change(key, jobs.cancel()) is None
    assert await store.complete_item(key, 0, None, ALWAYS) is None
    assert await store.refresh_counts(key) is None
    assert await store.due(clock.move(1e6), 10) == []
    assert not await store.delete(key)


async def test_job_is_returned_unchanged(store: JobStore, clock: MovableClock) -> None:
    moment = clock()
    plain = job_of(clock)
    full = replace(
        job_of(clock, 2),
        priority=Priority.LOW,
        counts=Counts(1000, 400, 7),
        status=JobStatus.CANCELLED,
        revision=41,
        fingerprint="f" * 64,
        sealed=True,
        announced=True,
        not_before=moment + timedelta(microseconds=1),
        deadline=moment + timedelta(days=1),
        started_at=moment,
        completed_at=moment + timedelta(hours=1),
        error=RecordError(CANCELLED, "Zu spät.", retryable=False),
        notify_email="ärger@example.org",
    )
    for job in (plain, full):
        assert await store.create(job)
        assert await store.get(job.key) == job


async def test_create_does_not_overwrite_a_job(store: JobStore, clock: MovableClock) -> None:
    first = job_of(clock)
    assert await store.create(first)
    assert not await store.create(replace(first, owner="another"))
    assert await store.get(first.key) == first


async def test_one_of_twenty_concurrent_creates_succeeds(
    store: JobStore, clock: MovableClock
) -> None:
    contenders = [replace(job_of(clock), fingerprint=str(number)) for number in range(20)]
    won = await asyncio.gather(*(store.create(job) for job in contenders))
    assert won.count(True) == 1
    assert await store.get(key_of()) == contenders[won.index(True)]


async def test_items_are_returned_unchanged_and_in_order(
    store: JobStore, clock: MovableClock
) -> None:
    job = job_of(clock, total=5)
    assert await store.create(job)
    items = [
        JobItem(0, "a" * 64, "ä/ü.png", {"line": 3, "tags": ["x", None], "deep": {"y": 0.1}}),
        JobItem(1, "", "empty.png", state=ItemState.FAILED, error=BROKEN),
        JobItem(2, "b" * 64),
        JobItem(3, "b" * 64),
        JobItem(4, "c" * 64),
    ]
    await store.add_items(job.key, items[::-1])
    assert await store.items(job.key, 10) == items
    assert await store.items(job.key, 2) == items[:2]
    assert await store.items(job.key, 2, after=1) == items[2:4]
    assert await store.items(job.key, 10, after=4) == []
    assert await store.items(job.key, 10, state=ItemState.FAILED) == [items[1]]
    assert await store.items(job.key, 2, 0, ItemState.OPEN) == items[2:4]
    assert await store.items(job.key, 2, 3, ItemState.OPEN) == items[4:]


async def test_add_items_does_not_overwrite_items(store: JobStore, clock: MovableClock) -> None:
    job = job_of(clock, total=8)
    assert await store.create(job)
    await store.add_items(job.key, items_of(4))
    await store.complete_item(job.key, 1, BROKEN, ALWAYS)
    others = [replace(item, name="another") for item in items_of(8)]
    await store.add_items(job.key, others)
    await store.add_items(job.key, others)
    found = await store.items(job.key, 10)
    assert [item.name for item in found] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", *["another"] * 4]
    assert [item.position for item in found if item.state is ItemState.FAILED] == [1]


async def test_same_items_can_be_added_concurrently(store: JobStore, clock: MovableClock) -> None:
    job = job_of(clock, total=60)
    assert await store.create(job)
    parts = [items_of(60), items_of(60, 20), items_of(40), items_of(60)]
    await asyncio.gather(*(store.add_items(job.key, part) for part in parts))
    assert await store.items(job.key, 100) == items_of(60)


async def test_get_many_returns_existing_jobs_of_any_tenant(
    store: JobStore, clock: MovableClock
) -> None:
    there = [job_of(clock, number) for number in range(1, 4)]
    there.append(replace(there[0], key=key_of(tenant="acme")))
    for job in there:
        assert await store.create(job)
    asked = [job.key for job in there]
    missing = [key_of(9), key_of(2, tenant="acme"), key_of(tenant="unknown")]
    assert await store.get_many([*asked, *missing, asked[0]]) == {job.key: job for job in there}
    assert await store.get_many([]) == {}
    many = [key_of(number) for number in range(2000)]
    assert set(await store.get_many(many)) == {key_of(number) for number in (1, 2, 3)}


async def test_change_applies_or_refuses_a_transition(store: JobStore, clock: MovableClock) -> None:
    job = await sealed(store, job_of(clock))
    clock.move(1)
    after = await store.change(job.key, jobs.start())
    assert after == jobs.start()(job, clock())
    assert await store.get(job.key) == after
    assert await store.change(job.key, jobs.start()) is None
    assert await store.get(job.key) == after


async def test_no_concurrent_change_is_lost(
    stores: Sequence[JobStore], clock: MovableClock
) -> None:
    store = stores[0]
    job = await running(store, job_of(clock))

    @transition(durable=True)
    def raise_revision(job: Job, now: datetime) -> Job:
        return replace(job, revision=job.revision + 1)

    changes = (stores[n % 2].change(job.key, raise_revision()) for n in range(5))
    after = await asyncio.gather(*changes)
    revisions = sorted(each.revision for each in after if each is not None)
    assert revisions == list(range(job.revision + 1, job.revision + 6))
    assert (await stored(store, job.key)).revision == job.revision + 5


async def test_one_of_concurrent_cancellations_succeeds(
    stores: Sequence[JobStore], clock: MovableClock
) -> None:
    job = await running(stores[0], job_of(clock))
    won = await asyncio.gather(*(stores[n % 2].change(job.key, jobs.cancel()) for n in range(5)))
    assert sum(each is not None for each in won) == 1


async def test_completing_every_item_completes_the_job(
    store: JobStore, clock: MovableClock
) -> None:
    job = await running(store, job_of(clock))
    clock.move(1)
    first = await store.complete_item(job.key, 0, None, ALWAYS)
    assert first is not None
    assert (first.status, first.counts, first.progress) == (JobStatus.RUNNING, Counts(3, 1), 33)
    assert first.revision == job.revision + 1
    assert await store.complete_item(job.key, 2, BROKEN, ALWAYS) is not None
    clock.move(1)
    last = await store.complete_item(job.key, 1, None, ALWAYS)
    assert last is not None
    assert (last.status, last.counts, last.completed_at) == (
        JobStatus.COMPLETED,
        Counts(3, 2, 1),
        clock(),
    )
    assert await store.get(job.key) == last
    items = await store.items(job.key, 10)
    assert [item.state for item in items] == ["succeeded", "succeeded", "failed"]
    assert [item.error for item in items] == [None, None, BROKEN]


async def test_completed_item_stays_as_it_is(store: JobStore, clock: MovableClock) -> None:
    job = await running(store, job_of(clock))
    before = await store.complete_item(job.key, 0, None, ALWAYS)
    assert await store.complete_item(job.key, 0, BROKEN, ALWAYS) is None
    assert await store.complete_item(job.key, 0, None, ALWAYS) is None
    assert await store.complete_item(job.key, 7, None, ALWAYS) is None  # there is no such item
    assert await store.get(job.key) == before
    assert (await store.items(job.key, 1))[0].state is ItemState.SUCCEEDED


async def test_failed_item_is_repaired_after_the_end_of_its_job(
    store: JobStore, clock: MovableClock
) -> None:
    items = [JobItem(n, "a" * 64) for n in range(2)]
    job = await running(store, job_of(clock, total=2), items)
    await store.complete_items(job.key, {0: replace(BROKEN, retryable=True), 1: BROKEN})
    ended = await store.refresh_counts(job.key)
    assert ended is not None
    assert (ended.status, ended.counts) == (JobStatus.COMPLETED, Counts(2, 0, 2))
    for position in (0, 1):
        await store.complete_item(job.key, position, None, ALWAYS)
    repaired = await store.get(job.key)
    assert repaired is not None
    assert (repaired.status, repaired.counts) == (JobStatus.COMPLETED, Counts(2, 1, 1))
    assert [item.state for item in await store.items(job.key, 10)] == ["succeeded", "failed"]


async def test_items_with_equal_images_are_completed_separately(
    store: JobStore, clock: MovableClock
) -> None:
    items = [JobItem(position, "a" * 64) for position in range(3)]
    job = await running(store, job_of(clock), items)
    after = await store.complete_item(job.key, 0, BROKEN, ALWAYS)
    assert after is not None
    assert after.counts == Counts(3, 0, 1)
    found = await store.items(job.key, 10)
    assert [item.state for item in found] == ["failed", "open", "open"]
    assert found[0] == replace(items[0], state=ItemState.FAILED, error=BROKEN)


async def test_many_items_are_completed_at_once_and_counted_later(
    store: JobStore, clock: MovableClock
) -> None:
    """More than fit in one transaction. One is completed before, and one position is unknown."""
    job = await running(store, job_of(clock, total=60))
    await store.complete_item(job.key, 5, BROKEN, ALWAYS)
    outcomes = {place: BROKEN if place % 10 == 0 else None for place in range(58)}
    await store.complete_items(job.key, {**outcomes, 500: None})
    assert (await stored(store, job.key)).counts == Counts(60, 0, 1)
    items = await store.items(job.key, 100)
    assert [item.position for item in items if item.state is ItemState.OPEN] == [58, 59]
    failed = [item.position for item in items if item.error == BROKEN]
    assert failed == [0, 5, 10, 20, 30, 40, 50]
    after = await store.refresh_counts(job.key)
    assert after is not None
    assert after.counts == Counts(60, 51, 7)
    await store.complete_items(job.key, {58: None, 59: None})
    last = await store.refresh_counts(job.key)
    assert last is not None
    assert last.status is JobStatus.COMPLETED


async def test_one_of_concurrent_completions_completes_the_job(
    stores: Sequence[JobStore], clock: MovableClock
) -> None:
    store = stores[0]
    job = await running(store, job_of(clock, total=25))
    settled = [stores[n % 2].complete_item(job.key, n % 25, None, SELDOM) for n in range(30)]
    outcomes = [after for after in await asyncio.gather(*settled) if after is not None]
    ends = [after for after in outcomes if after.status is JobStatus.COMPLETED]
    assert len(ends) == 1
    assert ends[0].counts == Counts(25, 25)
    assert await store.get(job.key) == ends[0]


async def test_concurrent_completions_do_not_fail(
    stores: Sequence[JobStore], clock: MovableClock
) -> None:
    """Eight workers complete all items, with a count now and then, and none gets an error."""
    total = 240
    job = await running(stores[0], job_of(clock, total=total))
    places = iter(range(total))
    seen: list[Job] = []

    async def complete(store: JobStore) -> None:
        for place in places:
            clock.move(0.05)
            after = await store.complete_item(job.key, place, None, timedelta(seconds=1))
            seen.extend([] if after is None else [after])

    await asyncio.gather(*(complete(stores[n % 2]) for n in range(8)))
    assert [each.status for each in seen].count(JobStatus.COMPLETED) == 1
    assert len(seen) <= 14  # at most one count per second, and the last
    assert (await stored(stores[0], job.key)).counts == Counts(total, total)


async def test_progress_never_decreases(stores: Sequence[JobStore], clock: MovableClock) -> None:
    store = stores[0]
    job = await running(store, job_of(clock, total=12))
    seen: list[Counts] = []

    async def watch() -> None:
        while True:
            seen.append((await stored(store, job.key)).counts)
            await asyncio.sleep(0.002)

    watcher = asyncio.create_task(watch())
    errors = [BROKEN if place % 3 == 0 else None for place in range(12)]
    await asyncio.gather(
        *(stores[n % 2].complete_item(job.key, n, error, ALWAYS) for n, error in enumerate(errors))
    )
    watcher.cancel()
    for before, after in itertools.pairwise(seen):
        assert before.succeeded <= after.succeeded
        assert before.failed <= after.failed
    last = await stored(store, job.key)
    assert (last.status, last.counts) == (JobStatus.COMPLETED, Counts(12, 8, 4))
    assert last.revision <= job.revision + 12


async def test_items_are_counted_once_per_interval(store: JobStore, clock: MovableClock) -> None:
    job = await running(store, job_of(clock, total=4))
    clock.move(60)
    assert await store.complete_item(job.key, 0, None, SELDOM) is not None
    clock.move(4.9)
    assert await store.complete_item(job.key, 1, None, SELDOM) is None
    assert await store.refresh_counts(job.key, SELDOM) is None
    assert (await stored(store, job.key)).counts == Counts(4, 1)
    clock.move(0.1)
    after = await store.refresh_counts(job.key, SELDOM)
    assert after is not None
    assert after.counts == Counts(4, 2)
    assert await store.complete_item(job.key, 2, None, SELDOM) is None
    last = await store.complete_item(
        job.key, 3, None, SELDOM
    )  # the last count does not wait for the interval
    assert last is not None
    assert (last.status, last.counts) == (JobStatus.COMPLETED, Counts(4, 4))


async def test_refresh_completes_a_job_after_a_crash(store: JobStore, clock: MovableClock) -> None:
    settled = [replace(item, state=ItemState.SUCCEEDED) for item in items_of(3)]
    job = await running(store, job_of(clock), settled)
    assert await store.refresh_counts(key_of(2)) is None
    last = await store.refresh_counts(job.key)
    assert last is not None
    assert last.status is JobStatus.COMPLETED
    assert await store.refresh_counts(job.key) is None


async def test_items_in_progress_at_a_cancellation_count(
    store: JobStore, clock: MovableClock
) -> None:
    job = await running(store, job_of(clock))
    assert await store.change(job.key, jobs.cancel()) is not None
    after = await store.complete_item(job.key, 0, None, SELDOM)
    assert after is not None
    assert (after.status, after.counts) == (JobStatus.CANCELLED, Counts(3, 1))
    for place in (1, 2):
        await store.complete_item(job.key, place, None, SELDOM)
    assert (await stored(store, job.key)).status is JobStatus.CANCELLED


async def test_unsealed_job_is_neither_listed_nor_counted(
    store: JobStore, clock: MovableClock
) -> None:
    job = job_of(clock)
    assert await store.create(job)
    await store.add_items(job.key, items_of(3))
    assert await store.complete_item(job.key, 0, None, ALWAYS) is None
    assert await store.list(PUBLIC, 10) == []
    assert await store.change(job.key, jobs.seal()) is not None
    assert [each.key for each in await store.list(PUBLIC, 10)] == [job.key]


async def test_list_returns_the_newest_first_in_pages(store: JobStore, clock: MovableClock) -> None:
    made = []
    for number in range(1, 6):
        made.append(await sealed(store, job_of(clock, number)))
        clock.move(1)
    newest = made[::-1]
    assert await store.list(PUBLIC, 10) == newest
    first = await store.list(PUBLIC, 2)
    assert first == newest[:2]
    clock.move(1)
    await sealed(store, job_of(clock, 99))  # a newer job does not move the pages
    assert await store.list(PUBLIC, 2, first[-1].sort_key) == newest[2:4]
    assert await store.list(PUBLIC, 2, newest[3].sort_key) == newest[4:]
    assert await store.list(PUBLIC, 2, newest[4].sort_key) == []


async def test_list_filters_by_owner_status_and_type(store: JobStore, clock: MovableClock) -> None:
    made = {}
    for number, owner in enumerate([OWNER, "other", OWNER, "", OWNER], start=1):
        made[number] = await sealed(store, job_of(clock, number, owner=owner))
        clock.move(1)
    for number in (1, 2):
        assert await store.change(key_of(number), jobs.cancel()) is not None

    async def listed(limit: int = 10, **wanted: str) -> list[int]:
        found = await store.list(JobFilter("public", **wanted), limit)
        return [int(job.key.id, 16) for job in found]

    assert await listed() == [5, 4, 3, 2, 1]
    assert await listed(owner=OWNER) == [5, 3, 1]
    assert await listed(owner="") == [4]  # jobs without a key, not the jobs of all keys
    assert await listed(status="cancelled") == [2, 1]
    assert await listed(status="pending") == [5, 4, 3]
    assert await listed(status="cancelled", owner=OWNER) == [1]
    assert await listed(status="running") == []
    assert await listed(type=jobs.BATCH_PREDICT) == [5, 4, 3, 2, 1]
    assert await listed(type="another") == []
    assert await listed(2, type=jobs.BATCH_PREDICT, owner=OWNER, status="pending") == [5, 3]
    cancelled = await store.list(JobFilter("public", status="cancelled"), 1)
    later = JobFilter("public", status="cancelled")
    assert [job.key for job in await store.list(later, 5, cancelled[0].sort_key)] == [key_of(1)]


async def test_list_finds_a_rare_type_among_many_others(
    store: JobStore, clock: MovableClock
) -> None:
    for number in range(1, 12):
        kind = "another" if number in (1, 6) else jobs.BATCH_PREDICT
        await sealed(store, replace(job_of(clock, number, total=0), type=kind))
        clock.move(1)
    found = await store.list(JobFilter("public", type="another"), 2)
    assert [job.key for job in found] == [key_of(6), key_of(1)]
    rest = await store.list(JobFilter("public", type="another"), 2, found[0].sort_key)
    assert [job.key for job in rest] == [key_of(1)]


async def test_due_returns_the_oldest_of_all_tenants(store: JobStore, clock: MovableClock) -> None:
    begin = clock()
    wakes = {1: 30, 2: 10, 3: 20, 4: 40}
    for number, seconds in wakes.items():
        tenant = "acme" if number % 2 else "public"
        job = replace(job_of(clock, number), key=key_of(number, tenant=tenant))
        assert await store.create(replace(job, wake_at=begin + timedelta(seconds=seconds)))

    async def due(seconds: float, limit: int = 10) -> list[int]:
        found = await store.due(begin + timedelta(seconds=seconds), limit)
        return [int(job.key.id, 16) for job in found]

    assert await due(9.999999) == []
    assert await due(10) == [2]
    assert await due(35) == [2, 3, 1]
    assert await due(100, limit=2) == [2, 3]

    @transition(durable=True)
    def wake_at(job: Job, now: datetime, moment: datetime) -> Job:
        return replace(job, wake_at=moment)

    assert await store.change(key_of(2), wake_at(begin + timedelta(seconds=90))) is not None
    assert await due(100) == [3, 1, 4, 2]


async def test_delete_removes_the_items(store: JobStore, clock: MovableClock) -> None:
    gone = await running(store, job_of(clock, 1))
    kept = await running(store, job_of(clock, 2))
    assert await store.delete(gone.key)
    assert not await store.delete(gone.key)
    assert await store.get(gone.key) is None
    assert await store.items(gone.key, 10) == []
    assert await store.list(PUBLIC, 10) == [kept]
    assert await store.complete_item(gone.key, 0, None, ALWAYS) is None
    assert await store.items(kept.key, 10) == items_of(3)
    assert await store.due(clock.move(1e6), 10) == [kept]


async def test_concurrently_deleted_job_stays_deleted(store: JobStore, clock: MovableClock) -> None:
    job = await running(store, job_of(clock, total=8))
    await asyncio.gather(
        store.delete(job.key),
        *(store.complete_item(job.key, place, None, ALWAYS) for place in range(8)),
    )
    assert await store.get(job.key) is None
    assert await store.items(job.key, 10) == []


async def test_tenants_are_separate(store: JobStore, clock: MovableClock) -> None:
    ours = await running(store, job_of(clock))
    theirs = await running(store, replace(job_of(clock), key=key_of(tenant="acme")))
    assert await store.list(PUBLIC, 10) == [ours]
    assert await store.complete_item(theirs.key, 0, BROKEN, ALWAYS) is not None
    assert await store.get(ours.key) == ours
    assert await store.items(ours.key, 10) == items_of(3)
    assert await store.delete(theirs.key)
    assert await store.get(ours.key) == ours
    assert await store.items(ours.key, 10) == items_of(3)


async def test_job_with_a_thousand_items(store: JobStore, clock: MovableClock) -> None:
    total = MAX_JOB_ITEMS
    details = {"note": "x" * 500}
    items = [replace(item, metadata=details) for item in items_of(total)]
    job = job_of(clock, total=total)
    assert await store.create(job)
    await store.add_items(job.key, items[:600])
    await store.add_items(job.key, items)  # like a repetition after a crash
    assert await store.change(job.key, jobs.seal()) is not None
    assert await store.change(job.key, jobs.start()) is not None
    assert await store.items(job.key, total) == items
    places = range(0, total, 50)
    for begin in range(0, len(places), 5):
        batch = places[begin : begin + 5]
        await asyncio.gather(
            *(store.complete_item(job.key, place, BROKEN, SELDOM) for place in batch)
        )
    after = await store.refresh_counts(job.key)
    assert after is not None
    assert (after.status, after.counts) == (JobStatus.RUNNING, Counts(total, 0, 20))
    assert await store.delete(job.key)
    assert await store.items(job.key, 1) == []
