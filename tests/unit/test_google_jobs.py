"""Counts of a job's items while the queries of two processes cross."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from core.backends.google.datastore import Datastore
from core.backends.google.entities import RawEntity
from core.backends.google.jobs import DatastoreJobStore
from core.domain import jobs
from core.domain.jobs import Counts, Job, JobKey, JobStatus, new_job
from tests.support.scripted_datastore import ScriptedDatastore, served

KEY = JobKey("public", "7" * 32)
TOTAL = 9


class CountedItems(ScriptedDatastore):
    """Answers a query for the items in a state with the number that the test has set."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = {"open": TOTAL, "succeeded": 0, "failed": 0}

    def found_by(self, query: Any) -> Sequence[Any]:
        conditions = query.filter.composite_filter.filters
        (state,) = [
            each.property_filter.value.string_value
            for each in conditions
            if each.property_filter.property.name == "state"
        ]
        found = self.numbers[state]
        limit = query.limit.value if query.HasField("limit") else found
        return [RawEntity()] * min(found, limit)

    def set(self, *, succeeded: int, failed: int) -> None:
        settled = succeeded + failed
        self.numbers = {"open": TOTAL - settled, "succeeded": succeeded, "failed": failed}


async def running_job(datastore: Datastore) -> DatastoreJobStore:
    store = DatastoreJobStore(datastore)
    assert await store.create(new_job(KEY, "", "m@0123456789ab", TOTAL, datetime.now(UTC)))
    assert await store.change(KEY, jobs.seal())
    assert await store.change(KEY, jobs.start())
    return store


async def stored(store: DatastoreJobStore) -> Job:
    job = await store.get(KEY)
    assert job is not None
    return job


async def test_crossed_counts_do_not_lower_a_number() -> None:
    """P3 for jobs: each of two concurrent counts has one number that is older."""
    scripted = CountedItems()
    async with served(scripted, "job store") as datastore:
        store = await running_job(datastore)
        scripted.set(succeeded=3, failed=0)
        first = await store.refresh_counts(KEY)
        assert first is not None and first.counts == Counts(TOTAL, 3, 0)
        commits = scripted.calls["Commit"]
        for succeeded, failed in ((2, 2), (2, 6), (0, 9), (3, 0)):
            scripted.set(succeeded=succeeded, failed=failed)
            assert await store.refresh_counts(KEY) is None
            assert (await stored(store)).counts == Counts(TOTAL, 3, 0)
        assert scripted.calls["Commit"] == commits
        scripted.set(succeeded=3, failed=6)
        last = await store.refresh_counts(KEY)
        assert last is not None
        assert (last.status, last.counts) == (JobStatus.COMPLETED, Counts(TOTAL, 3, 6))


async def test_count_is_compared_with_the_job_as_the_transaction_reads_it() -> None:
    """Another process stores its count after this one has read the job and before it commits."""

    class Interrupted(CountedItems):
        other: Any = None

        async def begin_transaction(self, request: Any, context: Any) -> Any:
            if self.other is not None:
                self.entities.update(self.other)
            return await super().begin_transaction(request, context)

    scripted = Interrupted()
    async with served(scripted, "job store") as datastore:
        store = await running_job(datastore)
        before = dict(scripted.entities)
        scripted.set(succeeded=4, failed=0)
        assert await store.refresh_counts(KEY) is not None
        scripted.other = dict(scripted.entities)
        scripted.entities = before
        scripted.set(succeeded=3, failed=3)
        assert await store.refresh_counts(KEY) is None
        assert (await stored(store)).counts == Counts(TOTAL, 4, 0)
