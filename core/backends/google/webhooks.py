"""Webhooks in Datastore: `Webhook/{id}` and `WebhookSlot/{number}`, in the tenant's namespace.

A webhook is inserted together with one of the slots of its tenant, so no tenant has more webhooks
than slots, and an insertion locks nothing that others read, which Firestore is slow to release.
The secrets are as private as the database.
"""

import json
import random
from typing import Any

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
from core.domain.webhooks import Delivery, Event, Webhook, WebhookKey
from core.errors import Unavailable

KIND, SLOT_KIND, SLOT = "Webhook", "WebhookSlot", "slot"
ROUNDS = 8  # attempts of an insertion that loses its slot to a concurrent one
_EVERY = query_for(KIND)
_TIMES = ("rotated_at", "previous_expires_at", "disabled_at")


class DatastoreWebhookStore(DatastoreStore[WebhookKey, Webhook]):
    """`core.ports.WebhookStore`."""

    async def create(self, webhook: Webhook, most: int) -> bool:
        for _ in range(ROUNDS):
            there = await self._datastore.query(webhook.tenant, _EVERY)
            taken = {entity.properties[SLOT].integer_value for entity in there}
            free = [slot for slot in range(most) if slot not in taken]
            if not free or any(entity.key.path[-1].name == webhook.id for entity in there):
                return False
            slot = random.choice(free)
            entity = _entity_of(webhook, self._raw_key(webhook.key), slot)
            held = RawEntity(key=self._slot_key(webhook.tenant, slot))
            if await self._datastore.insert_together([held, entity]):
                return True
        raise Unavailable("Other requests are changing the webhooks. Retry later.")

    async def list(self, tenant: str) -> list[Webhook]:
        entities = await self._datastore.query(tenant, _EVERY)
        found = [self._state_of(entity) for entity in entities]
        return sorted(found, key=lambda webhook: (webhook.created_at, webhook.id))

    async def delete(self, key: WebhookKey) -> bool:
        def slot(entity: Any) -> list[Any]:
            return [self._slot_key(key.tenant, entity.properties[SLOT].integer_value)]

        return await self._delete(key, slot)

    def _raw_key(self, key: WebhookKey) -> Any:
        return self._keys.path(self._keys.namespace(key.tenant), (KIND, key.id))

    def _slot_key(self, tenant: str, slot: int) -> Any:
        return self._keys.path(self._keys.namespace(tenant), (SLOT_KIND, str(slot)))

    def _state_of(self, entity: Any) -> Webhook:
        return _webhook_of(entity, self._keys.tenant_of(entity.key))

    def _changed(self, entity: Any, state: Webhook) -> Any:
        return _entity_of(state, entity.key, entity.properties[SLOT].integer_value)


def _entity_of(webhook: Webhook, raw_key: Any, slot: int) -> Any:
    """No property is indexed."""
    entity = RawEntity(key=raw_key)
    fields = entity.properties
    for name in ("owner", "url", "description", "disabled_reason"):
        set_text(fields[name], getattr(webhook, name))
    set_text(fields["events"], json.dumps(sorted(webhook.events)))
    set_blob(fields["secret"], webhook.secret)
    if webhook.previous_secret is not None:
        set_blob(fields["previous_secret"], webhook.previous_secret)
    set_time(fields["created_at"], webhook.created_at)
    set_number(fields[SLOT], slot)
    for name in _TIMES:
        if (at := getattr(webhook, name)) is not None:
            set_time(fields[name], at)
    if (last := webhook.last_delivery) is not None:
        set_time(fields["delivered_at"], last.at)
        set_text(fields["delivered_event"], last.event.value)
        set_text(fields["delivered_error"], last.error)
        if last.status is not None:
            set_number(fields["delivered_status"], last.status)
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
        last_delivery=_delivery_of(fields),
        **{name: moment_of(fields[name]) for name in _TIMES if name in fields},
    )


def _delivery_of(fields: Any) -> Delivery | None:
    if "delivered_at" not in fields:
        return None
    answered = "delivered_status" in fields
    return Delivery(
        moment_of(fields["delivered_at"]),
        Event(fields["delivered_event"].string_value),
        fields["delivered_status"].integer_value if answered else None,
        fields["delivered_error"].string_value,
    )
