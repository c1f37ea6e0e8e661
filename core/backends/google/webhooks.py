"""Webhooks in Datastore: `Webhooks/all` above `Webhook/{id}`, in the tenant's namespace.

The parent is written with each new webhook, so that of two made at once one counts the other.
Their secrets are as private as the database is. `core.webhooks` decides; this applies it.
"""

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from google.cloud.datastore_v1.types import PropertyFilter

from core import webhooks
from core.backends.google.datastore import Datastore, RawMutation, RawQuery, property_filter
from core.backends.google.entities import (
    RawEntity,
    RawValue,
    moment_of,
    set_blob,
    set_text,
    set_time,
)
from core.clock import Clock, utc_now
from core.webhooks import Event, Webhook

PARENT_KIND, KIND = "Webhooks", "Webhook"
_PARENT = (PARENT_KIND, "all")
_TIMES = ("rotated_at", "previous_expires_at", "disabled_at")

# Steps are lambdas with a name (ruff's E731): a type says what a `def` would spell out.
Step = Callable[[Webhook, datetime], Webhook | None]


class DatastoreWebhookStore:
    """`core.ports.WebhookStore`."""

    def __init__(self, datastore: Datastore, clock: Clock = utc_now) -> None:
        self._datastore = datastore
        self._clock = clock

    async def create(self, webhook: Webhook, most: int) -> bool:
        keys = self._datastore.keys
        parent = keys.path(keys.namespace(webhook.tenant), _PARENT)
        raw_key = self._raw_key(webhook.tenant, webhook.id)

        async def insert(transaction: bytes) -> tuple[bool, Sequence[Any]]:
            await self._datastore.find_in(parent, transaction)
            query = self._query(webhook.tenant)
            there = await self._datastore.query_in(webhook.tenant, query, transaction)
            if len(there) >= most or any(entity.key == raw_key for entity in there):
                return False, []
            marked = RawEntity(key=parent)
            set_time(marked.properties["changed_at"], webhook.created_at)
            return True, [
                RawMutation(upsert=marked),
                RawMutation(insert=_entity_of(webhook, raw_key)),
            ]

        return await self._datastore.transact(insert)

    async def get(self, tenant: str, id_: str) -> Webhook | None:
        entity = await self._datastore.find(self._raw_key(tenant, id_))
        return None if entity is None else _webhook_of(entity, tenant)

    async def list(self, tenant: str) -> list[Webhook]:
        entities = await self._datastore.query(tenant, self._query(tenant))
        found = [_webhook_of(entity, tenant) for entity in entities]
        return sorted(found, key=lambda webhook: (webhook.created_at, webhook.id))

    async def rotate(
        self, tenant: str, id_: str, secret: bytes, overlap: timedelta
    ) -> Webhook | None:
        step: Step = lambda hook, now: webhooks.rotated(hook, secret, overlap, now)  # noqa: E731
        return await self._apply(tenant, id_, step)

    async def disable(self, tenant: str, id_: str, reason: str) -> bool:
        step: Step = lambda hook, now: webhooks.disabled(hook, reason, now)  # noqa: E731
        return await self._apply(tenant, id_, step) is not None

    async def enable(self, tenant: str, id_: str) -> bool:
        step: Step = lambda hook, now: webhooks.enabled(hook)  # noqa: E731
        return await self._apply(tenant, id_, step) is not None

    async def delete(self, tenant: str, id_: str) -> bool:
        raw_key = self._raw_key(tenant, id_)

        async def delete(transaction: bytes) -> tuple[bool, Sequence[Any]]:
            if await self._datastore.find_in(raw_key, transaction) is None:
                return False, []
            return True, [RawMutation(delete=raw_key)]

        return await self._datastore.transact(delete)

    async def _apply(self, tenant: str, id_: str, step: Step) -> Webhook | None:
        raw_key = self._raw_key(tenant, id_)

        async def change(transaction: bytes) -> tuple[Webhook | None, Sequence[Any]]:
            entity = await self._datastore.find_in(raw_key, transaction)
            after = None if entity is None else step(_webhook_of(entity, tenant), self._clock())
            if after is None:
                return None, []
            return after, [RawMutation(update=_entity_of(after, raw_key))]

        return await self._datastore.transact(change)

    async def close(self) -> None:
        await self._datastore.close()

    def _raw_key(self, tenant: str, id_: str) -> Any:
        keys = self._datastore.keys
        return keys.path(keys.namespace(tenant), _PARENT, (KIND, id_))

    def _query(self, tenant: str) -> Any:
        keys = self._datastore.keys
        ancestor = RawValue(key_value=keys.path(keys.namespace(tenant), _PARENT))
        query = RawQuery(kind=[{"name": KIND}])
        query.filter.CopyFrom(
            property_filter("__key__", PropertyFilter.Operator.HAS_ANCESTOR, ancestor)
        )
        return query


def _entity_of(webhook: Webhook, raw_key: Any) -> Any:
    """Nothing of it is indexed."""
    entity = RawEntity(key=raw_key)
    fields = entity.properties
    for name in ("owner", "url", "description", "disabled_reason"):
        set_text(fields[name], getattr(webhook, name))
    set_text(fields["events"], json.dumps(sorted(webhook.events)))
    set_blob(fields["secret"], webhook.secret)
    if webhook.previous_secret is not None:
        set_blob(fields["previous_secret"], webhook.previous_secret)
    set_time(fields["created_at"], webhook.created_at)
    for name in _TIMES:
        if (at := getattr(webhook, name)) is not None:
            set_time(fields[name], at)
    return entity


def _webhook_of(entity: Any, tenant: str) -> Webhook:
    fields = entity.properties
    previous = fields["previous_secret"].blob_value if "previous_secret" in fields else None
    return Webhook(
        id=entity.key.path[-1].name,
        tenant=tenant,
        owner=fields["owner"].string_value,
        url=fields["url"].string_value,
        events=frozenset(Event(name) for name in json.loads(fields["events"].string_value)),
        secret=fields["secret"].blob_value,
        created_at=moment_of(fields["created_at"]),
        description=fields["description"].string_value,
        previous_secret=previous,
        disabled_reason=fields["disabled_reason"].string_value,
        **{name: moment_of(fields[name]) for name in _TIMES if name in fields},
    )
