"""Records in Datastore."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import Any

from core.backends.google.datastore import Datastore, RawMutation
from core.backends.google.due_index import RESOLUTION, DueIndex
from core.backends.google.entities import (
    BY_AGE,
    BY_MODEL,
    BY_STATUS,
    BY_TERM,
    DELETION_KIND,
    RECORD_KIND,
    UNFINISHED,
    WAKE_AT,
    deletion_of,
    entity_of,
    entity_of_deletion,
    hashed_term,
    record_of,
)
from core.backends.google.queries import KEY, query_for
from core.backends.google.store import DatastoreStore
from core.clock import Clock, utc_now
from core.domain import deletions
from core.domain.deletions import Deletion
from core.domain.record_lists import PageBuilder, RecordFilter, RecordPage
from core.domain.records import Claim, ImageKey, Record, RecordKey, Status, discardable
from core.domain.transitions import Transition
from core.errors import Conflict, NotFound


class DatastoreRecordStore(DatastoreStore[RecordKey, Record]):
    """`core.ports.RecordStore`."""

    async def get_many(self, keys: Sequence[RecordKey]) -> Mapping[RecordKey, Record]:
        # A key may occur once in a request.
        entities = await self._datastore.find_many([self._keys.record(key) for key in set(keys)])
        found = (record_of(entity, self._keys) for entity in entities)
        return {record.key: record for record in found}

    def __init__(self, datastore: Datastore, clock: Clock = utc_now) -> None:
        super().__init__(datastore, clock)
        self._unfinished = DueIndex(datastore, "records", clock)
        self._due_deletions = DueIndex(datastore, "deletions", clock)

    async def change(self, key: RecordKey, transition: Transition[Record]) -> Record | None:
        after = await super().change(key, transition)
        if after is not None and after.status is Status.PENDING:  # again, after it had ended
            await self._unfinished.note(key.tenant, after.updated_at)
        return after

    async def create(self, record: Record) -> bool:
        if not record.status.terminal:
            await self._unfinished.note(record.key.tenant, record.updated_at)
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
        """As the port says, with a query for each tenant that the index names."""
        query = query_for(RECORD_KIND, order=UNFINISHED, limit=limit)
        moment = attrgetter("updated_at")
        return await self._unfinished.collect(before, limit, query, self._state_of, moment)

    async def of_image(self, tenant: str, image_hash: str) -> Sequence[Record]:
        of_image = (KEY, "ancestor", self._keys.image(tenant, image_hash))
        entities = await self._datastore.query(tenant, query_for(RECORD_KIND, of_image))
        return [record_of(entity, self._keys) for entity in entities]

    async def discard(self, claim: Claim) -> bool:
        key = self._keys.record(claim.key)

        async def delete(transaction: bytes) -> tuple[bool, list[Any]]:
            entity = await self._datastore.find_in(key, transaction)
            if entity is None or not discardable(self._state_of(entity), claim):
                return False, []
            return True, [RawMutation(delete=key)]

        return await self._datastore.transact(delete)

    async def begin_deletion(self, image: ImageKey, owner: str, *, has_blob: bool) -> Deletion:
        async def begin(transaction: bytes) -> tuple[Deletion, list[Any]]:
            before = await self._deletion_in(image, transaction)
            after = deletions.begin(before, image, self._clock(), owner)
            if after is None:
                raise Conflict("The image is being deleted.")
            if after is before:
                return after, []
            records = await self._records_in(image, transaction)
            if not records and not has_blob:
                raise NotFound("No such image.")
            put = RawMutation(upsert=self._deletion_entity(after))
            return after, [put, *(RawMutation(delete=each.key) for each in records)]

        await self._datastore.register(image.tenant)
        await self._due_deletions.note(image.tenant, self._clock() + deletions.LEASE)
        return await self._datastore.transact(begin)

    async def end_deletion(self, deletion: Deletion) -> bool:
        async def end(transaction: bytes) -> tuple[bool, list[Any]]:
            before = await self._deletion_in(deletion.image, transaction)
            after = deletions.end(before, deletion, self._clock())
            if after is None:
                return False, []
            return True, [RawMutation(update=self._deletion_entity(after))]

        return await self._datastore.transact(end)

    async def deletion(self, image: ImageKey) -> Deletion | None:
        entity = await self._datastore.find(self._keys.deletion(image))
        return None if entity is None else deletion_of(entity, self._keys)

    async def get_with_deletion(self, key: RecordKey) -> tuple[Record | None, Deletion | None]:
        record, deletion = None, None
        wanted = [self._keys.record(key), self._keys.deletion(key.image)]
        for entity in await self._datastore.find_many(wanted):
            if entity.key.path[1].kind == RECORD_KIND:
                record = record_of(entity, self._keys)
            else:
                deletion = deletion_of(entity, self._keys)
        return record, deletion

    async def due_deletions(self, now: datetime, limit: int) -> Sequence[Deletion]:
        """As the port says, with a query for each tenant that the index names."""
        query = query_for(DELETION_KIND, order=WAKE_AT, limit=limit)
        work_of, moment = partial(deletion_of, keys=self._keys), attrgetter("wake_at")
        return await self._due_deletions.collect(now + RESOLUTION, limit, query, work_of, moment)

    async def clean_up_deletion(self, image: ImageKey, owner: str) -> Deletion | None:
        async def clean_up(transaction: bytes) -> tuple[Deletion | None, list[Any]]:
            now, before = self._clock(), await self._deletion_in(image, transaction)
            if before is not None and before.begun_by(owner):
                return before, []
            if before is None or before.in_progress or before.wake_at > now:
                return None, []
            recorded = bool(await self._records_in(image, transaction))
            after = deletions.clean_up(before, now, owner, recorded=recorded)
            if after is None:
                return None, [RawMutation(delete=self._keys.deletion(image))]
            update = RawMutation(update=self._deletion_entity(after))
            return after if after.in_progress else None, [update]

        return await self._datastore.transact(clean_up)

    async def _deletion_in(self, image: ImageKey, transaction: bytes) -> Deletion | None:
        entity = await self._datastore.find_in(self._keys.deletion(image), transaction)
        return None if entity is None else deletion_of(entity, self._keys)

    async def _records_in(self, image: ImageKey, transaction: bytes) -> Sequence[Any]:
        """The image's records under every model, as entities without properties."""
        of_image = (KEY, "ancestor", self._keys.image(*image))
        query = query_for(RECORD_KIND, of_image, keys_only=True)
        return await self._datastore.query_in(image.tenant, query, transaction)

    def _deletion_entity(self, deletion: Deletion) -> Any:
        return entity_of_deletion(deletion, self._keys.deletion(deletion.image))

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
