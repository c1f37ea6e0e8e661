"""Records in Datastore."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from heapq import nsmallest
from typing import Any

from core.backends.google.datastore import RawMutation
from core.backends.google.entities import (
    BY_AGE,
    BY_MODEL,
    BY_STATUS,
    BY_TERM,
    RECORD_KIND,
    UNFINISHED,
    entity_of,
    hashed_term,
    record_of,
)
from core.backends.google.queries import KEY, query_for
from core.backends.google.store import DatastoreStore
from core.domain.record_lists import PageBuilder, RecordFilter, RecordPage
from core.domain.records import Record, RecordKey


class DatastoreRecordStore(DatastoreStore[RecordKey, Record]):
    """`core.ports.RecordStore`."""

    async def get_many(self, keys: Sequence[RecordKey]) -> Mapping[RecordKey, Record]:
        # A key may occur once in a request.
        entities = await self._datastore.find_many([self._keys.record(key) for key in set(keys)])
        found = (record_of(entity, self._keys) for entity in entities)
        return {record.key: record for record in found}

    async def create(self, record: Record) -> bool:
        entity = entity_of(record, self._keys.record(record.key))
        return await self._datastore.insert(entity, record.key.tenant)

    async def list(self, wanted: RecordFilter, limit: int, after: str = "") -> RecordPage:
        """As the port says. Each query reads as many records as the page still needs."""
        name, prefix = _listing(wanted)
        low, high = wanted.bounds(after)
        page = PageBuilder(wanted, limit)
        while not page.full:
            bounds = ((name, ">", f"{prefix}{low}"), (name, "<", f"{prefix}{high}"))
            missing = limit - len(page.records)
            query = query_for(RECORD_KIND, *bounds, order=name, limit=missing)
            entities = await self._datastore.query(wanted.tenant, query)
            for entity in entities:
                page.add(record_of(entity, self._keys))
            if len(entities) < missing:
                break
            low = page.after
        return page.page()

    async def stale(self, before: datetime, limit: int) -> Sequence[Record]:
        """As the port says, with one query per tenant: a query covers one namespace."""
        found: list[Record] = []
        for tenant in await self._datastore.tenants():
            older = (UNFINISHED, "<", before)
            query = query_for(RECORD_KIND, older, order=UNFINISHED, limit=limit)
            entities = await self._datastore.query(tenant, query)
            found += [record_of(entity, self._keys) for entity in entities]
        return nsmallest(limit, found, key=lambda record: record.updated_at)

    async def of_image(self, tenant: str, image_hash: str) -> Sequence[Record]:
        of_image = (KEY, "ancestor", self._keys.image(tenant, image_hash))
        entities = await self._datastore.query(tenant, query_for(RECORD_KIND, of_image))
        return [record_of(entity, self._keys) for entity in entities]

    async def delete_image(self, tenant: str, image_hash: str) -> int:
        of_image = (KEY, "ancestor", self._keys.image(tenant, image_hash))
        query = query_for(RECORD_KIND, of_image, keys_only=True)

        async def delete(transaction: bytes) -> tuple[int, list[Any]]:
            entities = await self._datastore.query_in(tenant, query, transaction)
            return len(entities), [RawMutation(delete=entity.key) for entity in entities]

        return await self._datastore.transact(delete)

    async def delete_model(self, tenant: str, model: str, limit: int) -> int:
        # The property is the model's identity, a colon and the sort key: `;` follows the colon.
        bounds = ((BY_MODEL, ">", f"{model}:"), (BY_MODEL, "<", f"{model};"))
        query = query_for(RECORD_KIND, *bounds, order=BY_MODEL, keys_only=True)
        return await self._datastore.delete_found(tenant, query, limit)

    async def ping(self) -> None:
        await self._datastore.ping()

    def _raw_key(self, key: RecordKey) -> Any:
        return self._keys.record(key)

    def _state_of(self, entity: Any) -> Record:
        return record_of(entity, self._keys)

    def _changed(self, entity: Any, state: Record) -> Any:
        return entity_of(state, entity.key)


def _listing(wanted: RecordFilter) -> tuple[str, str]:
    """The most selective property for a list, and the prefix of the sort key in it."""
    if wanted.term:
        return BY_TERM, f"{hashed_term(wanted.term)}:"
    if wanted.status is not None:
        return BY_STATUS, f"{wanted.status}:"
    if wanted.model:
        return BY_MODEL, f"{wanted.model}:"
    return BY_AGE, ""
