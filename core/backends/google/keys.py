"""API keys, their limits and their usage in Datastore.

Keys and limits are in a separate namespace, because a key is looked up before its tenant is known:
`ApiKey/{id}`, `TenantLimits/{tenant}` and `Allowance/{owner}:{limit}`. They may also be in a
separate database, which only the API reaches, so no transaction here has entities of both
databases. Usage is in the database of the records, in the namespace of the tenant, as
`Usage/{day}:{key}:{shard}`: processes that count the same key write different entities.
"""

import asyncio
import json
import random
import secrets
from datetime import UTC, date, datetime, time
from itertools import groupby
from typing import Any

from core.backends.google.datastore import (
    Datastore,
    RawMutation,
)
from core.backends.google.due_index import DueIndex
from core.backends.google.entities import (
    RawEntity,
    moment_of,
    set_blob,
    set_number,
    set_text,
    set_time,
)
from core.backends.google.queries import KEY, query_for
from core.backends.google.store import DatastoreStore
from core.clock import Clock, utc_now
from core.domain.api_keys import ApiKey
from core.domain.principals import Scope
from core.domain.rate_limits import Allowance, Grant, Limit, Rate, TenantLimits, reserve
from core.domain.usage import Usage, UsageBatch

KEY_KIND, ALLOWANCE_KIND, USAGE_KIND = "ApiKey", "Allowance", "Usage"
LIMITS_KIND = "TenantLimits"
# The name of a tenant has no underscore.
ACCESS = "_access"
SHARDS, WRITERS = 16, 8
REMEMBERED = 64  # ids of the last batches that a shard has added, which may be sent again


class DatastoreKeyStore(DatastoreStore[str, ApiKey]):
    """`core.ports.KeyStore`."""

    async def create(self, key: ApiKey) -> bool:
        raw_key = self._raw_key(key.id)

        async def insert(transaction: bytes) -> tuple[bool, list[Any]]:
            if await self._datastore.find_in(raw_key, transaction) is not None:
                return False, []
            return True, [RawMutation(insert=_entity_of(key, raw_key))]

        return await self._datastore.transact(insert)

    async def keys(self, tenant: str | None = None) -> list[ApiKey]:
        conditions = [] if tenant is None else [("tenant", "=", tenant)]
        query = query_for(KEY_KIND, *conditions)
        found = [_key_of(entity) for entity in await self._datastore.query(ACCESS, query)]
        return sorted(found, key=lambda key: (key.created_at, key.id))

    async def limits(self, tenant: str) -> TenantLimits:
        entity = await self._datastore.find(self._limits_key(tenant))
        if entity is None:
            return TenantLimits()
        fields = entity.properties
        return TenantLimits(
            Rate.parse(fields["rate"].string_value) if "rate" in fields else None,
            fields["daily_quota"].integer_value if "daily_quota" in fields else None,
        )

    async def set_limits(self, tenant: str, limits: TenantLimits) -> None:
        entity = RawEntity(key=self._limits_key(tenant))
        if limits.rate is not None:
            set_text(entity.properties["rate"], str(limits.rate))
        if limits.daily_quota is not None:
            set_number(entity.properties["daily_quota"], limits.daily_quota)

        async def replace(transaction: bytes) -> tuple[None, list[Any]]:
            return None, [RawMutation(upsert=entity)]

        await self._datastore.transact(replace)

    def _limits_key(self, tenant: str) -> Any:
        return self._keys.path(self._keys.namespace(ACCESS), (LIMITS_KIND, tenant))

    def _raw_key(self, key: str) -> Any:
        return self._keys.path(self._keys.namespace(ACCESS), (KEY_KIND, key))

    def _state_of(self, entity: Any) -> ApiKey:
        return _key_of(entity)

    def _changed(self, entity: Any, state: ApiKey) -> Any:
        return _entity_of(state, entity.key)


class DatastoreAllowanceStore:
    """`core.ports.AllowanceStore`. Shares keep the writes to an entity far below one a second."""

    def __init__(self, datastore: Datastore, clock: Clock = utc_now) -> None:
        self._datastore = datastore
        self._clock = clock

    async def reserve(self, owner: str, limit: Limit, spent: int = 0) -> Grant:
        keys = self._datastore.keys
        raw_key = keys.path(keys.namespace(ACCESS), (ALLOWANCE_KIND, f"{owner}:{limit.name}"))
        # Another process may reserve the same share. Its commit must not pass for this one.
        caller = secrets.token_hex(8)

        async def reserve_share(transaction: bytes) -> tuple[Grant, list[Any]]:
            entity = await self._datastore.find_in(raw_key, transaction)
            before = None
            if entity is not None:
                fields = entity.properties
                before = Allowance(
                    fields["window"].integer_value,
                    fields["taken"].integer_value,
                    fields["owed"].integer_value if "owed" in fields else 0,
                )
            after, grant = reserve(before, limit, self._clock(), spent)
            if after == before or grant.refused:
                return grant, []
            entity = RawEntity(key=raw_key)
            set_number(entity.properties["window"], after.window)
            set_number(entity.properties["taken"], after.taken)
            set_number(entity.properties["owed"], after.owed)
            set_text(entity.properties["caller"], caller)
            return grant, [RawMutation(upsert=entity)]

        return await self._datastore.transact(reserve_share)


class DatastoreUsageStore:
    """`core.ports.UsageStore`."""

    def __init__(self, datastore: Datastore, clock: Clock = utc_now) -> None:
        self._datastore = datastore
        self._kept = DueIndex(datastore, "usage", clock)
        # Few shards, chosen at random: processes rarely conflict, and a read adds up few entities.
        self._shard = random.randrange(SHARDS)
        self._writers = asyncio.Semaphore(WRITERS)
        # Old days get no new counts, so one query for each day is enough.
        self._purged_before: date | None = None

    async def add(self, batch: UsageBatch) -> None:
        usage = batch.usage
        # A tenant may have counts only; without this, `purge` would not find them.
        await self._datastore.register(usage.tenant)
        await self._kept.note(usage.tenant, _midnight(usage.day))
        keys = self._datastore.keys
        name = f"{usage.day.isoformat()}:{usage.key_id}:{self._shard}"
        raw_key = keys.path(keys.namespace(usage.tenant), (USAGE_KIND, name))

        async def add(transaction: bytes) -> tuple[None, list[Any]]:
            before = await self._datastore.find_in(raw_key, transaction)
            batches = [] if before is None else _batches_of(before)
            if batch.id in batches:
                return None, []
            after = usage if before is None else usage + _usage_of(before, usage.tenant)
            entity = RawEntity(key=raw_key)
            for field in ("requests", "images", "bytes", "refused"):
                set_number(entity.properties[field], getattr(after, field))
            set_text(entity.properties["batches"], " ".join([*batches[-REMEMBERED:], batch.id]))
            return None, [RawMutation(upsert=entity)]

        async with self._writers:
            await self._datastore.transact(add)

    async def read(self, tenant: str, since: date) -> list[Usage]:
        query = query_for(USAGE_KIND, (KEY, ">=", self._first_key(tenant, since)))
        found = [_usage_of(entity, tenant) for entity in await self._datastore.query(tenant, query)]
        found.sort(key=_by_day)
        return [_sum(list(shards)) for _, shards in groupby(found, key=_by_day)]

    async def purge(self, before: date, limit: int) -> int:
        if before == self._purged_before:
            return 0

        async def of_tenant(tenant: str, limit: int) -> tuple[int, datetime | None]:
            older = (KEY, "<", self._first_key(tenant, before))
            query = query_for(USAGE_KIND, older, keys_only=True)
            purged = await self._datastore.delete_found(tenant, query, limit)
            oldest = query_for(USAGE_KIND, order=KEY, limit=1)
            left = await self._datastore.query(tenant, oldest)
            return purged, _midnight(_usage_of(left[0], tenant).day) if left else None

        purged = await self._kept.purge(_midnight(before), limit, of_tenant)
        if not purged and not await self._kept.due(_midnight(before)):
            self._purged_before = before
        return purged

    def _first_key(self, tenant: str, day: date) -> Any:
        """Sorts before the keys of the tenant's counts of this day."""
        keys = self._datastore.keys
        return keys.path(keys.namespace(tenant), (USAGE_KIND, day.isoformat()))


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _by_day(usage: Usage) -> tuple[date, str]:
    return usage.day, usage.key_id


def _sum(counts: list[Usage]) -> Usage:
    total = counts[0]
    for usage in counts[1:]:
        total += usage
    return total


def _usage_of(entity: Any, tenant: str) -> Usage:
    day, key_id, _ = entity.key.path[0].name.split(":")
    fields = entity.properties
    return Usage(
        tenant,
        key_id,
        date.fromisoformat(day),
        fields["requests"].integer_value,
        fields["images"].integer_value,
        fields["bytes"].integer_value,
        fields["refused"].integer_value,
    )


def _batches_of(entity: Any) -> list[str]:
    fields = entity.properties
    batches: list[str] = fields["batches"].string_value.split() if "batches" in fields else []
    return batches


_TIMES = ("expires_at", "revoked_at", "last_used_at", "rotated_at", "previous_expires_at")


def _entity_of(key: ApiKey, raw_key: Any) -> Any:
    """Only `tenant` has an index."""
    entity = RawEntity(key=raw_key)
    fields = entity.properties
    fields["tenant"].string_value = key.tenant
    set_text(fields["name"], key.name)
    set_text(fields["scopes"], json.dumps(sorted(key.scopes)))
    set_blob(fields["digest"], key.digest)
    set_time(fields["created_at"], key.created_at)
    for name in _TIMES:
        if (at := getattr(key, name)) is not None:
            set_time(fields[name], at)
    if key.previous_digest is not None:
        set_blob(fields["previous_digest"], key.previous_digest)
    if key.rate is not None:
        set_text(fields["rate"], str(key.rate))
    if key.daily_quota is not None:
        set_number(fields["daily_quota"], key.daily_quota)
    return entity


def _key_of(entity: Any) -> ApiKey:
    fields = entity.properties
    return ApiKey(
        id=entity.key.path[0].name,
        tenant=fields["tenant"].string_value,
        name=fields["name"].string_value,
        scopes=frozenset(Scope(name) for name in json.loads(fields["scopes"].string_value)),
        digest=fields["digest"].blob_value,
        created_at=moment_of(fields["created_at"]),
        previous_digest=(
            fields["previous_digest"].blob_value if "previous_digest" in fields else None
        ),
        rate=Rate.parse(fields["rate"].string_value) if "rate" in fields else None,
        daily_quota=fields["daily_quota"].integer_value if "daily_quota" in fields else None,
        **{name: moment_of(fields[name]) for name in _TIMES if name in fields},
    )
