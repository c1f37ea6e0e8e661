"""Creates, changes, rotates, tests and deletes the webhooks of a tenant."""

from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from core import errors
from core.backends import Backend
from core.clock import Clock
from core.domain import webhooks
from core.domain.jobs import new_job_id
from core.domain.messages import Notify
from core.domain.principals import Principal
from core.domain.webhooks import (
    MAX_WEBHOOKS,
    WEBHOOK_ID,
    Change,
    Event,
    Webhook,
    WebhookKey,
    message_id,
    new_secret,
    new_webhook_id,
    secret_text,
)
from core.outbound.http_client import CHECK_SECONDS, PublicResolver
from core.services.publishing import publish

log = structlog.get_logger(__name__)

DEFAULT_OVERLAP = timedelta(hours=24)
LONGEST_OVERLAP = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Issued:
    """A webhook with its secret, for the receiver."""

    webhook: Webhook
    secret: str = field(repr=False)


class Webhooks:
    """The webhooks of one store. Methods see those of one tenant."""

    def __init__(self, backend: Backend, resolver: PublicResolver, clock: Clock) -> None:
        self._store = backend.webhooks
        self._publisher = backend.publisher
        self._resolver = resolver
        self._clock = clock

    async def create(
        self, principal: Principal, url: str, events: frozenset[Event], description: str
    ) -> Issued:
        """Create a webhook.

        Raises InvalidRequest and PrivateAddress for the URL, and Conflict if the tenant has as many
        webhooks as it may have.
        """
        await self._resolver.check(url, CHECK_SECONDS)
        try:
            webhook = Webhook(
                id=new_webhook_id(),
                tenant=principal.tenant,
                owner=principal.key_id,
                url=url,
                events=events,
                secret=new_secret(),
                created_at=self._clock(),
                description=description,
            )
        except ValueError as wrong:
            raise errors.InvalidRequest(f"The webhook's {wrong}.") from None
        if not await self._store.create(webhook, MAX_WEBHOOKS):
            raise errors.Conflict(f"The tenant already has {MAX_WEBHOOKS} webhooks, the maximum.")
        # Without the URL, which may contain a secret of the receiver.
        log.info("webhook created", webhook=webhook.id, tenant=webhook.tenant)
        return Issued(webhook, secret_text(webhook.secret))

    async def list(self, tenant: str) -> list[Webhook]:
        """Return the webhooks, oldest first."""
        return await self._store.list(tenant)

    async def get(self, tenant: str, id_: str) -> Webhook:
        """Return the webhook. Raises NotFound."""
        webhook = (
            await self._store.get(WebhookKey(tenant, id_)) if WEBHOOK_ID.fullmatch(id_) else None
        )
        if webhook is None:
            raise _unknown()
        return webhook

    async def rotate(self, tenant: str, id_: str, overlap: timedelta) -> Issued:
        """Create a new secret. The old one signs as well for `overlap`. Raises NotFound."""
        key = (await self.get(tenant, id_)).key
        webhook = await self._store.change(key, webhooks.rotate(new_secret(), overlap))
        if webhook is None:
            raise _unknown()
        log.info("webhook rotated", webhook=id_, tenant=tenant, overlap=overlap.total_seconds())
        return Issued(webhook, secret_text(webhook.secret))

    async def test(self, tenant: str, id_: str) -> str:
        """Publish a test event; return its `webhook-id`.

        Raises NotFound, Conflict if the webhook is disabled, and Unavailable.
        """
        webhook = await self.get(tenant, id_)
        if not webhook.enabled:
            raise errors.Conflict("The webhook is disabled. Enable it first.")
        message = Notify(tenant, new_job_id(), Event.TEST, id_)
        await publish(self._publisher, message)
        return message_id(message.job, Event.TEST)

    async def change(self, tenant: str, id_: str, change: Change) -> Webhook:
        """Change and return the webhook. Raises as `create` does, and NotFound."""
        if change.url is not None:
            await self._resolver.check(change.url, CHECK_SECONDS)
        before, update = await self.get(tenant, id_), webhooks.update(change)
        try:
            if update(before, self._clock()) == before:
                return before
        except ValueError as wrong:
            raise errors.InvalidRequest(f"The webhook's {wrong}.") from None
        after = await self._store.change(before.key, update)
        if after is None:
            raise _unknown()
        log.info("webhook changed", webhook=id_, tenant=tenant, enabled=after.enabled)
        return after

    async def delete(self, tenant: str, id_: str) -> None:
        """Delete the webhook. Raises NotFound."""
        webhook = await self.get(tenant, id_)
        await self._store.delete(webhook.key)
        log.info("webhook deleted", webhook=id_, tenant=tenant)


def _unknown() -> errors.NotFound:
    return errors.NotFound("There is no such webhook.")
