"""Webhooks as clients see them."""

from typing import Any, Self

from pydantic import BaseModel, Field

from app.http.timestamps import Timestamp
from core.domain import webhooks as domain
from core.domain.webhooks import Event


class Delivery(BaseModel):
    """The last attempt to send an event to a webhook."""

    at: Timestamp
    event: Event
    status: int | None = Field(description="The HTTP status of the receiver's response")
    error: str | None = Field(
        description="Why there was no response, such as `no_answer` or `private_address`"
    )

    @classmethod
    def of(cls, delivery: domain.Delivery) -> Self:
        return cls(
            at=delivery.at,
            event=delivery.event,
            status=delivery.status,
            error=delivery.error or None,
        )


class Webhook(BaseModel):
    """A webhook without its secret."""

    id: str = Field(pattern=f"^{domain.WEBHOOK_ID.pattern}$")
    url: str
    description: str
    events: list[Event]
    enabled: bool
    disabled_at: Timestamp | None
    disabled_reason: str | None = Field(description="Such as: the receiver answered 410")
    created_at: Timestamp
    created_by: str | None = Field(description="The id of the key that created it")
    rotated_at: Timestamp | None
    previous_expires_at: Timestamp | None = Field(
        description="Until when the secret before the last rotation signs as well"
    )
    last_delivery: Delivery | None = Field(
        description="The last attempt at this URL. Equal results are updated once a minute."
    )

    @classmethod
    def of(cls, webhook: domain.Webhook, **more: Any) -> Self:
        last = webhook.last_delivery
        return cls(
            id=webhook.id,
            url=webhook.url,
            description=webhook.description,
            events=sorted(webhook.events),
            enabled=webhook.enabled,
            disabled_at=webhook.disabled_at,
            disabled_reason=webhook.disabled_reason or None,
            created_at=webhook.created_at,
            created_by=webhook.owner or None,
            rotated_at=webhook.rotated_at,
            previous_expires_at=webhook.previous_expires_at,
            last_delivery=None if last is None else Delivery.of(last),
            **more,
        )


class IssuedWebhook(Webhook):
    """A webhook with its secret, which no later response contains."""

    secret: str = Field(description="With it the receiver verifies signatures: `whsec_…`")


class WebhookList(BaseModel):
    """The webhooks of a tenant."""

    webhooks: list[Webhook]


class WebhookTest(BaseModel):
    """A test event that was accepted for delivery."""

    message_id: str = Field(description="The `webhook-id` header of the event")
