"""Work that is due, of many tenants: fair between them, on every backend (P4)."""

from collections import Counter
from datetime import timedelta

import pytest

from core.backends import Backend
from core.domain.jobs import JobKey, new_job, new_job_id
from core.domain.records import RecordError, RecordKey, fail_unleased, new_record, retry, touch
from tests.support.clock import MovableClock
from tests.support.records import delete_image

MODEL = "m@0123456789ab"


def key_of(tenant: str, number: int) -> RecordKey:
    return RecordKey(tenant, f"{number:064x}", MODEL)


async def test_tenant_with_many_stale_records_does_not_delay_others(
    backend: Backend, clock: MovableClock
) -> None:
    records = backend.records
    for number in range(12):
        await records.create(new_record(key_of("big", number), clock()))
        clock.move(1)
    for tenant in ("small", "other"):
        await records.create(new_record(key_of(tenant, 0), clock()))
    before = clock.move(10)
    found = await records.stale(before, 6)
    assert Counter(record.key.tenant for record in found) == {"big": 4, "small": 1, "other": 1}
    assert found == sorted(found, key=lambda record: record.updated_at)
    # Each run takes up where the last one stopped.
    seen = set()
    for _ in range(4):
        for record in await records.stale(before, 4):
            seen.add(record.key)
            assert await records.change(record.key, touch(before))
    assert len(seen) == 14
    assert await records.stale(before, 6) == []
    later = clock.move(10)
    assert len(await records.stale(later, 100)) == 14


async def test_tenant_with_many_due_jobs_does_not_delay_others(
    backend: Backend, clock: MovableClock
) -> None:
    store = backend.jobs
    for number in range(6):
        await store.create(new_job(JobKey("big", new_job_id()), "", MODEL, 1, clock.move(number)))
    await store.create(new_job(JobKey("small", new_job_id()), "", MODEL, 1, clock()))
    due = await store.due(clock.move(4000), 3)
    assert Counter(job.key.tenant for job in due) == {"big": 2, "small": 1}


async def test_work_is_found_once_it_is_due(backend: Backend, clock: MovableClock) -> None:
    """The first run finds nothing, or the tenant has had no work left."""
    records, jobs = backend.records, backend.jobs
    await records.create(new_record(key_of("acme", 1), clock()))
    job = new_job(JobKey("acme", new_job_id()), "", MODEL, 1, clock())
    await jobs.create(job)
    await records.begin_deletion(key_of("acme", 2).image, "owner", has_blob=True)
    for _ in range(3):
        assert await records.stale(clock() - timedelta(seconds=600), 10) == []
        assert await jobs.due(clock(), 10) == []
        assert await records.due_deletions(clock(), 10) == []
        clock.move(15)
    clock.move(4000)
    assert len(await records.stale(clock() - timedelta(seconds=600), 10)) == 1
    assert [each.key for each in await jobs.due(clock(), 10)] == [job.key]
    assert len(await records.due_deletions(clock(), 10)) == 1

    await delete_image(records, key_of("acme", 1).image)
    await jobs.delete(job.key)
    for _ in range(3):
        assert await records.stale(clock(), 10) == []
        assert await jobs.due(clock(), 10) == []
        clock.move(1000)
    await records.create(new_record(key_of("acme", 3), clock()))
    await jobs.create(new_job(JobKey("acme", new_job_id()), "", MODEL, 1, clock()))
    clock.move(4000)
    assert len(await records.stale(clock(), 10)) == 1
    assert len(await jobs.due(clock(), 10)) == 1


@pytest.mark.parametrize("pause", [1, 1000])
async def test_retried_record_is_found_again(
    backend: Backend, clock: MovableClock, pause: float
) -> None:
    records, key = backend.records, key_of("acme", 1)
    await records.create(new_record(key, clock()))
    assert await records.change(key, fail_unleased(RecordError("broken", "It broke.", True)))
    assert await records.stale(clock.move(pause), 10) == []
    assert await records.change(key, retry())
    assert await records.stale(clock(), 10) == []
    assert [each.key for each in await records.stale(clock.move(pause), 10)] == [key]
