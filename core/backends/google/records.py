"""Records in Datastore. `core.records` decides each transition, a transaction applies it."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from heapq import nsmallest
from typing import Any

import grpc.aio
from google.cloud.datastore_v1.types import PropertyFilter, PropertyOrder

from core import records
from core.backends.google.datastore import (
    KEY_ONLY,
    Datastore,
    RawMutation,
    RawQuery,
    property_filter,
)
from core.backends.google.entities import (
    RECORD_KIND,
    UNFINISHED,
    RawValue,
    entity_of,
    record_of,
    time_value,
)
from core.clock import Clock, utc_now
from core.priority import Priority
from core.records import Annotation, Claim, Record, RecordError, RecordKey, Status

Step = Callable[[Record, datetime], Record | None]

PART = "record store"


class DatastoreRecordStore:
    """`core.ports.RecordStore` on one database."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        project: str,
        database: str = "",
        namespace_prefix: str = "",
        clock: Clock = utc_now,
    ) -> None:
        self._datastore = Datastore(channel, project, database, namespace_prefix, PART)
        self._keys = self._datastore.keys
        self._clock = clock

    async def get(self, key: RecordKey) -> Record | None:
        return self._record(await self._datastore.find(self._keys.record(key)))

    async def get_many(self, keys: Sequence[RecordKey]) -> Mapping[RecordKey, Record]:
        # Datastore takes a key once in a request.
        entities = await self._datastore.find_many([self._keys.record(key) for key in set(keys)])
        found = (record_of(entity, self._keys) for entity in entities)
        return {record.key: record for record in found}

    async def create(self, record: Record) -> bool:
        entity = entity_of(record, self._keys.record(record.key))
        return await self._datastore.insert(entity, record.key.tenant)

    async def advance(self, key: RecordKey, from_: Status, to: Status) -> bool:
        step: Step = lambda record, now: records.advanced(record, from_, to, now)  # noqa: E731
        return await self._apply(key, step) is not None

    async def claim(self, key: RecordKey, lease: timedelta) -> Claim | None:
        step: Step = lambda record, now: records.claimed(record, now, lease)  # noqa: E731
        record = await self._apply(key, step)
        return None if record is None else records.claim_of(record)

    async def complete(self, claim: Claim, annotations: Sequence[Annotation]) -> bool:
        step: Step = lambda record, now: records.completed(record, claim, annotations, now)  # noqa: E731
        return await self._apply(claim.key, step) is not None

    async def fail(
        self,
        claim_or_key: Claim | RecordKey,
        error: RecordError,
        *,
        submitted_by: datetime | None = None,
        untouched_since: datetime | None = None,
        only_for: str = "",
    ) -> bool:
        claim = claim_or_key if isinstance(claim_or_key, Claim) else None
        key = claim_or_key.key if isinstance(claim_or_key, Claim) else claim_or_key

        def step(record: Record, now: datetime) -> Record | None:
            return records.failed(
                record,
                claim,
                error,
                now,
                submitted_by=submitted_by,
                untouched_since=untouched_since,
                only_for=only_for,
            )

        return await self._apply(key, step) is not None

    async def release(self, claim: Claim, error: RecordError | None = None) -> bool:
        step: Step = lambda record, now: records.released(record, claim, now, error)  # noqa: E731
        return await self._apply(claim.key, step) is not None

    async def retry(
        self, key: RecordKey, priority: Priority = Priority.HIGH, job: str = ""
    ) -> bool:
        step: Step = lambda record, now: records.retried(record, now, priority, job)  # noqa: E731
        return await self._apply(key, step) is not None

    async def want(self, key: RecordKey, priority: Priority, job: str = "") -> bool:
        step: Step = lambda record, now: records.wanted(record, priority, job)  # noqa: E731
        return await self._apply(key, step) is not None

    async def touch(self, key: RecordKey, before: datetime) -> bool:
        step: Step = lambda record, now: records.touched(record, before, now)  # noqa: E731
        return await self._apply(key, step) is not None

    async def stale(self, before: datetime, limit: int) -> list[Record]:
        """As the port says; one query for each tenant, since queries stay inside a namespace."""
        found: list[Record] = []
        for tenant in await self._datastore.tenants():
            query = RawQuery(kind=[{"name": RECORD_KIND}], limit={"value": limit})
            query.filter.CopyFrom(
                property_filter(UNFINISHED, PropertyFilter.Operator.LESS_THAN, time_value(before))
            )
            query.order.add(
                property={"name": UNFINISHED}, direction=PropertyOrder.Direction.ASCENDING
            )
            entities = await self._datastore.query(tenant, query)
            found += [record_of(entity, self._keys) for entity in entities]
        return nsmallest(limit, found, key=lambda record: record.updated_at)

    async def delete_image(self, tenant: str, image_hash: str) -> int:
        query = RawQuery(kind=[{"name": RECORD_KIND}], projection=[KEY_ONLY])
        ancestor = RawValue(key_value=self._keys.image(tenant, image_hash))
        query.filter.CopyFrom(
            property_filter("__key__", PropertyFilter.Operator.HAS_ANCESTOR, ancestor)
        )

        async def delete(transaction: bytes) -> tuple[int, list[Any]]:
            entities = await self._datastore.query_in(tenant, query, transaction)
            return len(entities), [RawMutation(delete=entity.key) for entity in entities]

        return await self._datastore.transact(delete)

    async def ping(self) -> None:
        await self._datastore.ping()

    async def close(self) -> None:
        await self._datastore.close()

    async def _apply(self, key: RecordKey, step: Step) -> Record | None:
        """Read, decide and write in one transaction; None where refused or unknown."""
        raw_key = self._keys.record(key)

        async def transition(transaction: bytes) -> tuple[Record | None, list[Any]]:
            before = self._record(await self._datastore.find_in(raw_key, transaction))
            after = None if before is None else step(before, self._clock())
            if after is None:
                return None, []
            # Not an upsert: what was deleted meanwhile stays deleted.
            return after, [RawMutation(update=entity_of(after, raw_key))]

        return await self._datastore.transact(transition)

    def _record(self, entity: Any | None) -> Record | None:
        return None if entity is None else record_of(entity, self._keys)
