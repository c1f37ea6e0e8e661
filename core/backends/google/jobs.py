"""Jobs in Datastore: `Job/{id}` in the tenant's namespace, its items `Item/{id}-{position}` there.

Jobs and items are JSON texts, with an indexed property beside them for what queries search for. The
built-in indexes of Datastore answer every query, so an operator creates none: by equality and a
range of keys for items, by a range of one property for jobs. Like a dead letter, a job has one
property for each way to list it. https://cloud.google.com/datastore/docs/concepts/indexes

Completing an item writes no other entity. Items have no ancestor: if there are entity groups (in
the Datastore emulator), all items of a job would be one group, and their transactions would wait
for each other. The job is written when its items are counted, at most once per
`MIN_REFRESH_INTERVAL`, and when it ends.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

from core.backends.google.datastore import (
    TRANSACTION_SECONDS,
    Datastore,
    RawMutation,
)
from core.backends.google.due_index import RESOLUTION, DueIndex
from core.backends.google.entities import RawEntity, set_text, time_value
from core.backends.google.entity_locks import EntityLocks
from core.backends.google.errors import translated
from core.backends.google.queries import KEY, query_for
from core.backends.google.store import DatastoreStore
from core.clock import Clock, utc_now
from core.domain import jobs
from core.domain.job_codec import item_of_text, job_of_text, text_of_item, text_of_job
from core.domain.jobs import Counts, ItemState, Job, JobFilter, JobItem, JobKey
from core.domain.policy import JobPolicy
from core.domain.records import RecordError
from core.domain.transitions import Transition

JOB_KIND, ITEM_KIND = "Job", "Item"
MAX_POSITION = 999_999
MAX_ITEMS = 25  # items in a transaction; the Datastore emulator allows no more entity groups
# Datastore recommends at most one write a second to an entity:
# https://cloud.google.com/datastore/docs/best-practices
MIN_REFRESH_INTERVAL = timedelta(seconds=1)
_DOCUMENT, _STATE, _WAKE_AT = "document", "state", "wake_at"


class DatastoreJobStore(DatastoreStore[JobKey, Job]):
    """`core.ports.JobStore`.

    An `interval` between zero and `MIN_REFRESH_INTERVAL` counts as `MIN_REFRESH_INTERVAL`.
    """

    def __init__(
        self, datastore: Datastore, clock: Clock = utc_now, policy: JobPolicy = jobs.POLICY
    ) -> None:
        super().__init__(datastore, clock)
        self._policy = policy
        self._locks = EntityLocks()
        self._due = DueIndex(datastore, "jobs", clock)

    async def create(self, job: Job) -> bool:
        await self._due.note(job.key.tenant, job.wake_at)
        return await self._datastore.insert(self._entity_of(job), job.key.tenant)

    async def add_items(self, key: JobKey, items: Sequence[JobItem]) -> None:
        entities = [_entity_of_item(self._item_key(key, item.position), item) for item in items]
        await self._datastore.insert_missing(entities)

    async def get_many(self, keys: Sequence[JobKey]) -> Mapping[JobKey, Job]:
        wanted = [self._raw_key(key) for key in dict.fromkeys(keys)]
        found = [job_of_text(_text(each)) for each in await self._datastore.find_many(wanted)]
        return {job.key: job for job in found}

    async def list(self, wanted: JobFilter, limit: int, after: str = "") -> Sequence[Job]:
        """As the port says. The type is filtered here, so this may take more than one query."""
        found: list[Job] = []
        while len(found) < limit:
            query = _listing(wanted, after, limit)
            page = [
                job_of_text(_text(entity))
                for entity in await self._datastore.query(wanted.tenant, query)
            ]
            found += [job for job in page if wanted.type in ("", job.type)]
            if len(page) < limit:
                break
            after = page[-1].sort_key
        return found[:limit]

    async def items(
        self, key: JobKey, limit: int, after: int = -1, state: ItemState | None = None
    ) -> Sequence[JobItem]:
        query = self._items_query(key, state, limit, after)
        entities = await self._datastore.query(key.tenant, query)
        return [item_of_text(_text(entity)) for entity in entities]

    async def change(self, key: JobKey, transition: Transition[Job]) -> Job | None:
        async with self._lock(key):
            return await self._change(key, transition)

    async def _change(self, key: JobKey, transition: Transition[Job]) -> Job | None:
        after = await super().change(key, transition)
        if after is not None:
            await self._due.note(key.tenant, after.wake_at)
        return after

    async def complete_item(
        self, key: JobKey, position: int, error: RecordError | None, interval: timedelta
    ) -> Job | None:
        if not await self._complete(key, {position: error}):
            return None
        return await self.refresh_counts(key, interval)

    async def complete_items(self, key: JobKey, outcomes: Mapping[int, RecordError | None]) -> None:
        """As the port says. Runs transactions in sequence: concurrent ones abort each other."""
        positions = list(outcomes)
        for begin in range(0, len(positions), MAX_ITEMS):
            chunk = positions[begin : begin + MAX_ITEMS]
            await self._complete(key, {position: outcomes[position] for position in chunk})

    async def refresh_counts(self, key: JobKey, interval: timedelta = timedelta(0)) -> Job | None:
        job, any_open = await asyncio.gather(self.get(key), self._any_open(key))
        if job is None:
            return None
        interval = max(interval, MIN_REFRESH_INTERVAL) if interval else interval
        if not jobs.count_is_due(job, self._clock(), interval, any_open=any_open):
            return None
        if interval and any_open and not job.status.terminal and self._locks.locked(key):
            return None  # this process is counting them
        async with self._lock(key):
            counts, before = await asyncio.gather(self._count(key, job.counts.total), self.get(key))
            update = jobs.update_counts(counts, interval, self._policy)
            # Most callers that waited for the lock find nothing left to do.
            if before is None or update(before, self._clock()) is None:
                return None
            return await self._change(key, update)

    async def due(self, now: datetime, limit: int) -> Sequence[Job]:
        """As the port says, with a query for each tenant that the index names."""
        query = query_for(JOB_KIND, order=_WAKE_AT, limit=limit)
        moment = attrgetter("wake_at")
        return await self._due.collect(now + RESOLUTION, limit, query, self._state_of, moment)

    async def delete(self, key: JobKey) -> bool:
        """As the port says. Items first: after a crash, the scheduler finds the job again."""
        items = self._items_query(key, keys_only=True)
        await self._datastore.delete_found(key.tenant, items, MAX_POSITION + 1)
        return await self._delete(key)

    @asynccontextmanager
    async def _lock(self, key: JobKey) -> AsyncIterator[None]:
        """Serializes the changes of one job in this process. Raises Unavailable."""
        with translated(self._datastore.part):
            async with self._locks.lock(key, TRANSACTION_SECONDS):
                yield

    async def _complete(self, key: JobKey, outcomes: Mapping[int, RecordError | None]) -> bool:
        """Complete those of these items that are open, in one transaction.

        Returns False if none exists.
        """
        keys = [self._item_key(key, position) for position in outcomes]

        async def complete(transaction: bytes) -> tuple[bool, Sequence[Any]]:
            entities = await self._datastore.find_many_in(keys, transaction)
            mutations = []
            for entity in entities:
                item = item_of_text(_text(entity))
                after = jobs.complete_item(item, outcomes[item.position])
                if after is not None:
                    mutations.append(RawMutation(update=_entity_of_item(entity.key, after)))
            return bool(entities), mutations

        return await self._datastore.transact(complete)

    async def _any_open(self, key: JobKey) -> bool:
        query = self._items_query(key, ItemState.OPEN, 1, keys_only=True)
        return bool(await self._datastore.query(key.tenant, query))

    async def _count(self, key: JobKey, total: int) -> Counts:
        """The items that have ended. The numbers need not be of one instant.

        First those that have succeeded, which stays true. An item that fails or is repaired
        between the two queries is counted once or not at all, so no count ends a job too early.

        Counts keys, at the price of an aggregation, which the Datastore emulator does not have.
        """

        async def number(state: ItemState) -> int:
            query = self._items_query(key, state, keys_only=True)
            return len(await self._datastore.query(key.tenant, query))

        succeeded = await number(ItemState.SUCCEEDED)
        return Counts(total, succeeded, await number(ItemState.FAILED))

    def _items_query(
        self,
        key: JobKey,
        state: ItemState | None = None,
        limit: int | None = None,
        after: int = -1,
        *,
        keys_only: bool = False,
    ) -> Any:
        """The job's items after the position `after`, in order."""
        conditions: list[tuple[str, str, Any]] = [
            (KEY, ">=", self._item_key(key, after + 1)),
            (KEY, "<=", self._item_key(key, MAX_POSITION)),
        ]
        if state is not None:
            conditions.append((_STATE, "=", state.value))
        return query_for(ITEM_KIND, *conditions, order=KEY, limit=limit, keys_only=keys_only)

    def _raw_key(self, key: JobKey) -> Any:
        return self._keys.path(self._keys.namespace(key.tenant), (JOB_KIND, key.id))

    def _state_of(self, entity: Any) -> Job:
        return job_of_text(_text(entity))

    def _changed(self, entity: Any, state: Job) -> Any:
        return self._entity_of(state)

    def _item_key(self, key: JobKey, position: int) -> Any:
        """The position has leading zeros, so that keys sort like positions."""
        name = f"{key.id}-{position:06d}"
        return self._keys.path(self._keys.namespace(key.tenant), (ITEM_KIND, name))

    def _entity_of(self, job: Job) -> Any:
        entity = RawEntity(key=self._raw_key(job.key))
        set_text(entity.properties[_DOCUMENT], text_of_job(job))
        entity.properties[_WAKE_AT].CopyFrom(time_value(job.wake_at))
        if job.sealed:
            for name, prefix in _listings(job.owner, job.status):
                entity.properties[name].string_value = f"{prefix}{job.sort_key}"
        return entity


def _listings(owner: str, status: str) -> Sequence[tuple[str, str]]:
    """The properties for lists, by name, and the prefix of the sort key in each.

    Of all jobs, by status, by owner, by owner and status.
    """
    return (
        ("all", ""),
        ("by_status", f"{status}:"),
        ("by_owner", f"{owner}:"),
        ("by_owner_and_status", f"{owner}:{status}:"),
    )


def _listing(wanted: JobFilter, after: str, limit: int) -> Any:
    place = 2 * (wanted.owner is not None) + bool(wanted.status)
    name, prefix = _listings(wanted.owner or "", wanted.status)[place]
    bounds = ((name, ">", f"{prefix}{after}"), (name, "<", f"{prefix}~"))
    return query_for(JOB_KIND, *bounds, order=name, limit=limit)


def _entity_of_item(key: Any, item: JobItem) -> Any:
    entity = RawEntity(key=key)
    set_text(entity.properties[_DOCUMENT], text_of_item(item))
    entity.properties[_STATE].string_value = item.state.value
    return entity


def _text(entity: Any) -> str:
    text: str = entity.properties[_DOCUMENT].string_value
    return text
