"""Dead letters in Datastore: entities `DeadLetter/{id}` in the tenant's namespace.

One indexed property, a sort key, answers a whole list. There are four: with and without the code in
front, of all letters and of unresolved ones. So no list needs a composite index, which an operator
would have to create.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from core.backends.google.datastore import Datastore
from core.backends.google.due_index import DueIndex
from core.backends.google.entities import (
    RawEntity,
    moment_of,
    set_blob,
    set_number,
    set_text,
    set_time,
)
from core.backends.google.queries import query_for
from core.backends.google.store import DatastoreStore
from core.clock import Clock, utc_now
from core.domain.dead_letters import DeadLetter, LetterFilter, LetterKey
from core.domain.sort_keys import bound

KIND = "DeadLetter"
_ALL, _ALL_BY_CODE, _OPEN, _OPEN_BY_CODE = "all", "all_by_code", "open", "open_by_code"


class DatastoreDeadLetterStore(DatastoreStore[LetterKey, DeadLetter]):
    """`core.ports.DeadLetterStore`."""

    def __init__(self, datastore: Datastore, clock: Clock = utc_now) -> None:
        super().__init__(datastore, clock)
        self._kept = DueIndex(datastore, "letters", clock)

    async def add(self, letter: DeadLetter) -> bool:
        await self._kept.note(letter.tenant, letter.died_at)
        entity = _entity_of(letter, self._raw_key(letter.key))
        return await self._datastore.insert(entity, letter.tenant)

    async def list(self, wanted: LetterFilter, limit: int, after: str = "") -> Sequence[DeadLetter]:
        low, high = wanted.bounds(after)
        name = _ALL if wanted.resolved else _OPEN
        if wanted.code:
            name = _ALL_BY_CODE if wanted.resolved else _OPEN_BY_CODE
            low, high = _by_code(wanted.code, low), _by_code(wanted.code, high)
        query = _between(name, low, high)
        query.limit.value = limit
        entities = await self._datastore.query(wanted.tenant, query)
        return [self._state_of(entity) for entity in entities]

    async def delete(self, key: LetterKey) -> bool:
        return await self._delete(key)

    async def purge(self, before: datetime, limit: int) -> int:
        async def of_tenant(tenant: str, limit: int) -> tuple[int, datetime | None]:
            older = _between(_ALL, bound(before), "~", keys_only=True)
            purged = await self._datastore.delete_found(tenant, older, limit)
            # The sort keys have the newest letter first.
            oldest = query_for(KIND, order=_ALL, descending=True, limit=1)
            left = await self._datastore.query(tenant, oldest)
            return purged, moment_of(left[0].properties["died_at"]) if left else None

        return await self._kept.purge(before, limit, of_tenant)

    def _raw_key(self, key: LetterKey) -> Any:
        return self._keys.path(self._keys.namespace(key.tenant), (KIND, key.id))

    def _state_of(self, entity: Any) -> DeadLetter:
        return _letter_of(entity, self._keys.tenant_of(entity.key))

    def _changed(self, entity: Any, state: DeadLetter) -> Any:
        return _entity_of(state, entity.key)


def _between(name: str, low: str, high: str, *, keys_only: bool = False) -> Any:
    """The letters whose property `name` lies between `low` and `high`, both excluded, in order."""
    return query_for(KIND, (name, ">", low), (name, "<", high), order=name, keys_only=keys_only)


def _by_code(code: str, sort_key: str) -> str:
    return f"{code}:{sort_key}"


def _entity_of(letter: DeadLetter, key: Any) -> Any:
    entity = RawEntity(key=key)
    fields = entity.properties
    set_text(fields["attributes"], json.dumps(dict(letter.attributes), ensure_ascii=False))
    set_blob(fields["payload"], letter.payload)
    set_number(fields["payload_size"], letter.payload_size)
    set_number(fields["attempts"], letter.attempts)
    set_text(fields["code"], letter.code)
    set_text(fields["detail"], letter.detail)
    set_time(fields["published_at"], letter.published_at)
    set_time(fields["died_at"], letter.died_at)
    fields[_ALL].string_value = letter.sort_key
    fields[_ALL_BY_CODE].string_value = _by_code(letter.code, letter.sort_key)
    if letter.resolved_at is None:
        fields[_OPEN].string_value = letter.sort_key
        fields[_OPEN_BY_CODE].string_value = _by_code(letter.code, letter.sort_key)
    else:
        set_time(fields["resolved_at"], letter.resolved_at)
    return entity


def _letter_of(entity: Any, tenant: str) -> DeadLetter:
    fields = entity.properties
    return DeadLetter(
        id=entity.key.path[0].name,
        tenant=tenant,
        attributes=json.loads(fields["attributes"].string_value),
        payload=fields["payload"].blob_value,
        payload_size=fields["payload_size"].integer_value,
        attempts=fields["attempts"].integer_value,
        code=fields["code"].string_value,
        detail=fields["detail"].string_value,
        published_at=moment_of(fields["published_at"]),
        died_at=moment_of(fields["died_at"]),
        resolved_at=moment_of(fields["resolved_at"]) if "resolved_at" in fields else None,
    )
