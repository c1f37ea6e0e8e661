"""The transitions of records, API keys and webhooks, as every store of them has them.

`core.domain.records`, `core.domain.api_keys` and `core.domain.webhooks` decide a transition, a
store applies it. What a port's method asks for, and how durable it has to be, stands here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from core.domain import api_keys, webhooks
from core.domain.api_keys import ApiKey
from core.domain.webhooks import Change, Delivery, Webhook

K = TypeVar("K")
T = TypeVar("T")

# From what is stored, and the time, to what is stored next, or to None: refused.
Transition = Callable[[T, datetime], T | None]


class Transitions(ABC, Generic[K, T]):
    """What a store inherits: its transitions over the one method that it implements."""

    @abstractmethod
    async def _apply(self, key: K, transition: Transition[T], *, durable: bool) -> T | None:
        """Read, decide and write in one transaction; what is stored now.

        None where `transition` refuses, or nothing is under `key`. It may be called more than once.

        Whatever is written survives the death of every process. If it is also `durable`, it is on
        disk (fsynced) before this returns; otherwise a power loss may undo it, the newest first.
        Google's stores ignore that: Datastore keeps what it has committed, and has no weaker commit
        to choose.
        """


class KeyTransitions(Transitions[str, ApiKey]):
    """The transitions of `core.ports.KeyStore`, by the key's id.

    What lets somebody in or keeps them out is durable. That a key was used may be forgotten.
    """

    async def rotate(self, key_id: str, digest: bytes, overlap: timedelta) -> ApiKey | None:
        return await self._apply(
            key_id, lambda key, now: api_keys.rotated(key, digest, overlap, now), durable=True
        )

    async def revoke(self, key_id: str) -> bool:
        return await self._apply(key_id, api_keys.revoked, durable=True) is not None

    async def touch(self, key_id: str, at: datetime) -> bool:
        after = await self._apply(key_id, lambda key, now: api_keys.touched(key, at), durable=False)
        return after is not None


class WebhookTransitions(Transitions[tuple[str, str], Webhook]):
    """The transitions of `core.ports.WebhookStore`, by tenant and id.

    What says who is told of what, and with which secret, is durable. How the last delivery ended
    may be forgotten.
    """

    async def rotate(
        self, tenant: str, id_: str, secret: bytes, overlap: timedelta
    ) -> Webhook | None:
        return await self._apply(
            (tenant, id_),
            lambda webhook, now: webhooks.rotated(webhook, secret, overlap, now),
            durable=True,
        )

    async def change(self, tenant: str, id_: str, change: Change) -> Webhook | None:
        return await self._apply(
            (tenant, id_),
            lambda webhook, now: webhooks.changed(webhook, change, now),
            durable=True,
        )

    async def note(
        self, tenant: str, id_: str, url: str, delivery: Delivery, gone: str = ""
    ) -> bool:
        after = await self._apply(
            (tenant, id_),
            lambda webhook, now: webhooks.noted(webhook, url, delivery, gone),
            durable=bool(gone),
        )
        return after is not None
