"""Jobs in Datastore: `Job/{id}` in the tenant's namespace, its items `Item/{id}-{position}` there.

Job and item are JSON texts; what is searched for stands beside them as an indexed property. Every
query is one that Datastore's built-in indexes answer, so that nobody has to set an index up: by
equality and a range of keys for items, by a range of one property for jobs. A job has one property
for each way to list it, as dead letters do.
https://cloud.google.com/datastore/docs/concepts/indexes

A settled item changes no entity but its own, and items have no ancestor: where there are entity
groups (in the Datastore emulator), all items of a job would be one, and settling them would be
waiting in line. The job is written when its items are counted, at most once in `SLOWEST_REFRESH`,
and when it ends.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from heapq import nsmallest
from typing import Any

from google.cloud.datastore_v1.types import CompositeFilter, Filter, PropertyFilter, PropertyOrder

from core.backends.google.datastore import (
    KEY_ONLY,
    MOST_MUTATIONS,
    TRANSACTION,
    Datastore,
    RawMutation,
    RawQuery,
    property_filter,
)
from core.backends.google.entities import RawEntity, RawValue, set_text, time_value
from core.backends.google.entity_locks import EntityLocks
from core.backends.google.errors import translated
from core.backends.google.store import DatastoreStore
from core.clock import Clock, utc_now
from core.domain import jobs
from core.domain.job_codec import item_of_text, job_of_text, text_of_item, text_of_job
from core.domain.jobs import Counts, ItemState, Job, JobFilter, JobItem, JobKey
from core.domain.policy import JobPolicy
from core.domain.records import RecordError
from core.domain.transitions import Transition

JOB_KIND, ITEM_KIND = "Job", "Item"
LAST_POSITION = 999_999
TOGETHER = 25  # items in a transaction; the Datastore emulator allows no more
# Datastore advises against more than one write a second to an entity:
# https://cloud.google.com/datastore/docs/best-practices
SLOWEST_REFRESH = timedelta(seconds=1)
_DOCUMENT, _STATE, _WAKE_AT = "document", "state", "wake_at"
_Operator = PropertyFilter.Operator


class DatastoreJobStore(DatastoreStore[JobKey, Job]):
    """`core.ports.JobStore`.

    An `interval` below `SLOWEST_REFRESH` is taken for that, but for none at all.
    """

    def __init__(
        self, datastore: Datastore, clock: Clock = utc_now, policy: JobPolicy = jobs.POLICY
    ) -> None:
        super().__init__(datastore, clock)
        self._policy = policy
        self._locks = EntityLocks()

    async def create(self, job: Job) -> bool:
        return await self._datastore.insert(self._entity_of(job), job.key.tenant)

    async def add_items(self, key: JobKey, items: Sequence[JobItem]) -> None:
        entities = [_entity_of_item(self._item_key(key, item.position), item) for item in items]
        await self._datastore.insert_missing(entities)

    async def get_many(self, keys: Sequence[JobKey]) -> Mapping[JobKey, Job]:
        wanted = [self._raw_key(key) for key in dict.fromkeys(keys)]
        found = [job_of_text(_text(each)) for each in await self._datastore.find_many(wanted)]
        return {job.key: job for job in found}

    async def list(self, wanted: JobFilter, limit: int, after: str = "") -> Sequence[Job]:
        """As the port says; the type is looked at here, so it may take more than one query."""
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
            return await super().change(key, transition)

    async def settle(
        self, key: JobKey, position: int, error: RecordError | None, interval: timedelta
    ) -> Job | None:
        """As the port says, in one transaction up to `TOGETHER`."""
        if not await self._settle_together(key, {position: error}):
            return None
        return await self.refresh(key, interval)

    async def settle_many(self, key: JobKey, outcomes: Mapping[int, RecordError | None]) -> None:
        """As the port says, one transaction after another: a job's many would abort each other."""
        positions = list(outcomes)
        for begin in range(0, len(positions), TOGETHER):
            chunk = {place: outcomes[place] for place in positions[begin : begin + TOGETHER]}
            await self._settle_together(key, chunk)

    async def _settle_together(
        self, key: JobKey, outcomes: Mapping[int, RecordError | None]
    ) -> bool:
        """Whether any of these items is there.

        Where they are too many with their twins, they are settled after those: should that not be
        reached, they are still open and will be settled again.
        """
        rest = await self._settle(key, outcomes, with_twins=True)
        if rest is None:
            return False
        places = list(rest)
        for begin in range(0, len(places), TOGETHER):
            chunk = {place: rest[place] for place in places[begin : begin + TOGETHER]}
            await self._settle(key, chunk)
        return True

    async def refresh(self, key: JobKey, interval: timedelta = timedelta(0)) -> Job | None:
        job, any_open = await asyncio.gather(self.get(key), self._any_open(key))
        if job is None:
            return None
        interval = max(interval, SLOWEST_REFRESH) if interval else interval
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
            return await super().change(key, update)

    async def due(self, now: datetime, limit: int) -> Sequence[Job]:
        """As the port says; one query for each tenant, since queries stay inside a namespace."""
        found: list[Job] = []
        query = RawQuery(kind=[{"name": JOB_KIND}], limit={"value": limit})
        query.filter.CopyFrom(
            property_filter(_WAKE_AT, _Operator.LESS_THAN_OR_EQUAL, time_value(now))
        )
        query.order.add(property={"name": _WAKE_AT}, direction=PropertyOrder.Direction.ASCENDING)
        for tenant in await self._datastore.tenants():
            entities = await self._datastore.query(tenant, query)
            found += [job_of_text(_text(entity)) for entity in entities]
        return nsmallest(limit, found, key=lambda job: job.wake_at)

    async def delete(self, key: JobKey) -> bool:
        """As the port says. The items go first: what is left of a job is found again by its row."""
        query = self._items_query(key, None, MOST_MUTATIONS)
        query.projection.add(**KEY_ONLY)
        while found := await self._datastore.query(key.tenant, query):
            await self._datastore.delete([entity.key for entity in found])

        async def delete(transaction: bytes) -> tuple[bool, Sequence[Any]]:
            if await self._datastore.find_in(self._raw_key(key), transaction) is None:
                return False, []
            return True, [RawMutation(delete=self._raw_key(key))]

        return await self._datastore.transact(delete)

    async def ping(self) -> None:
        await self._datastore.ping()

    @asynccontextmanager
    async def _lock(self, key: JobKey) -> AsyncIterator[None]:
        """Serializes the changes of one job in this process. Raises Unavailable."""
        with translated(self._datastore.part):
            async with self._locks.lock(key, TRANSACTION):
                yield

    async def _settle(
        self,
        key: JobKey,
        outcomes: Mapping[int, RecordError | None],
        *,
        with_twins: bool = False,
    ) -> Mapping[int, RecordError | None] | None:
        """Settle those of these items that are open. None where there are none at all.

        Otherwise what is still to be settled: with the twins it may be too much for a transaction,
        and then it is left alone.
        """

        async def settle(
            transaction: bytes,
        ) -> tuple[Mapping[int, RecordError | None] | None, Sequence[Any]]:
            entities = await self._find_items(key, list(outcomes), transaction)
            if not entities:
                return None, []
            every = dict(outcomes)
            if with_twins:
                items = [item_of_text(_text(each)) for each in entities]
                twins = {twin: outcomes[item.position] for item in items for twin in item.twins}
                if len(twins) + len(entities) > TOGETHER:
                    return {**twins, **outcomes}, []
                every |= twins
                entities = [*entities, *await self._find_items(key, list(twins), transaction)]
            ended = (
                _settled(entity, every[item_of_text(_text(entity)).position]) for entity in entities
            )
            return {}, [RawMutation(update=entity) for entity in ended if entity is not None]

        return await self._datastore.transact(settle)

    async def _find_items(
        self, key: JobKey, positions: Sequence[int], transaction: bytes
    ) -> Sequence[Any]:
        keys = [self._item_key(key, position) for position in positions]
        return await self._datastore.find_many_in(keys, transaction)

    async def _any_open(self, key: JobKey) -> bool:
        query = self._items_query(key, ItemState.OPEN, 1)
        query.projection.add(**KEY_ONLY)
        return bool(await self._datastore.query(key.tenant, query))

    async def _count(self, key: JobKey, total: int) -> Counts:
        """What has ended: numbers that only rise, so that no moment has to be held still for them.

        By keys, which cost as much as an aggregation would: the Datastore emulator has none.
        """

        async def number(state: ItemState) -> int:
            query = self._items_query(key, state)
            query.projection.add(**KEY_ONLY)
            return len(await self._datastore.query(key.tenant, query))

        succeeded, failed = await asyncio.gather(
            number(ItemState.SUCCEEDED), number(ItemState.FAILED)
        )
        return Counts(total, succeeded, failed)

    def _items_query(
        self, key: JobKey, state: ItemState | None, limit: int | None = None, after: int = -1
    ) -> Any:
        """Those of the job behind the position `after`, in the order of their keys."""
        query = RawQuery(kind=[{"name": ITEM_KIND}])
        if limit is not None:
            query.limit.value = limit
        first, last = self._item_key(key, after + 1), self._item_key(key, LAST_POSITION)
        filters = [
            property_filter("__key__", _Operator.GREATER_THAN_OR_EQUAL, RawValue(key_value=first)),
            property_filter("__key__", _Operator.LESS_THAN_OR_EQUAL, RawValue(key_value=last)),
        ]
        if state is not None:
            value = RawValue(string_value=state.value)
            filters.append(property_filter(_STATE, _Operator.EQUAL, value))
        query.filter.CopyFrom(_all_of(filters))
        query.order.add(property={"name": "__key__"}, direction=PropertyOrder.Direction.ASCENDING)
        return query

    def _raw_key(self, key: JobKey) -> Any:
        return self._keys.path(self._keys.namespace(key.tenant), (JOB_KIND, key.id))

    def _state_of(self, entity: Any) -> Job:
        return job_of_text(_text(entity))

    def _changed(self, entity: Any, state: Job) -> Any:
        return self._entity_of(state)

    def _item_key(self, key: JobKey, position: int) -> Any:
        """Zeros in front, so that keys sort as positions do."""
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
    """The names of the properties by which a job is listed, and what each has before its position.

    In the order: of all, with one status, of one owner, of one owner with one status.
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
    query = RawQuery(kind=[{"name": JOB_KIND}], limit={"value": limit})
    bounds = (
        property_filter(name, _Operator.GREATER_THAN, RawValue(string_value=f"{prefix}{after}")),
        property_filter(name, _Operator.LESS_THAN, RawValue(string_value=f"{prefix}~")),
    )
    query.filter.CopyFrom(_all_of(bounds))
    query.order.add(property={"name": name}, direction=PropertyOrder.Direction.ASCENDING)
    return query


def _all_of(filters: Sequence[Any]) -> Any:
    both = CompositeFilter.pb()(op=CompositeFilter.Operator.AND, filters=filters)
    return Filter.pb()(composite_filter=both)


def _entity_of_item(key: Any, item: JobItem) -> Any:
    entity = RawEntity(key=key)
    set_text(entity.properties[_DOCUMENT], text_of_item(item))
    entity.properties[_STATE].string_value = item.state.value
    return entity


def _settled(entity: Any, error: RecordError | None) -> Any | None:
    """The item with its end; None where it has one."""
    item = item_of_text(_text(entity))
    if item.state is not ItemState.OPEN:
        return None
    state = ItemState.SUCCEEDED if error is None else ItemState.FAILED
    return _entity_of_item(entity.key, replace(item, state=state, error=error))


def _text(entity: Any) -> str:
    text: str = entity.properties[_DOCUMENT].string_value
    return text
