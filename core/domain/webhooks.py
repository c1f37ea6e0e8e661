"""A webhook: the receiver that a tenant registers for events, and its transitions.

Times are timezone-aware UTC. Secrets and signatures are those of Standard Webhooks:
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from core.domain.records import TENANT
from core.domain.transitions import transition

WEBHOOK_ID = re.compile(r"wh_[0-9a-f]{24}")
DESCRIPTION = re.compile(r"[^\x00-\x1f\x7f]{0,200}")
MAX_URL_LENGTH = 2048
MAX_WEBHOOKS = 20  # for each tenant
# Each note is a write, so one of several deliveries with the same outcome is noted in this time.
NOTE_INTERVAL = timedelta(minutes=1)
DISABLED_BY_OWNER = "It was turned off."

SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix of every secret, not a secret
SECRET_BYTES = 32
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64  # the specification's bounds

# Header names as the specification spells them.
ID_HEADER = "webhook-id"
TIME_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"


class Event(StrEnum):
    """What a webhook can be notified of."""

    JOB_COMPLETED = "job.completed"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    TEST = "webhook.test"  # sent to one webhook at a client's request


class JobEvent(StrEnum):
    """The events that a webhook can choose: those of `JOB_EVENTS`."""

    COMPLETED = "job.completed"
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"


JOB_EVENTS = frozenset({Event.JOB_COMPLETED, Event.JOB_FAILED, Event.JOB_CANCELLED})


@dataclass(frozen=True, slots=True)
class Delivery:
    """The outcome of one attempt to deliver `event`.

    `status` is the HTTP status of the answer. Without an answer it is None, and `error` is the code
    of the failure.
    """

    at: datetime
    event: Event
    status: int | None = None
    error: str = ""

    @property
    def succeeded(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Change:
    """New values for fields of a webhook; None keeps the value."""

    url: str | None = None
    events: frozenset[Event] | None = None
    description: str | None = None
    enabled: bool | None = None


class WebhookKey(NamedTuple):
    tenant: str
    id: str


@dataclass(frozen=True, slots=True)
class Webhook:
    """`owner` is the id of the API key that created it, empty without keys.

    After a rotation, messages carry a signature by each secret until `previous_expires_at`. A
    webhook is enabled while `disabled_at` is None. `last_delivery` is to the current URL. Raises
    ValueError if a field is malformed.
    """

    id: str
    tenant: str
    owner: str
    url: str
    events: frozenset[Event]
    secret: bytes = field(repr=False)
    created_at: datetime
    description: str = ""
    rotated_at: datetime | None = None
    previous_secret: bytes | None = field(default=None, repr=False)
    previous_expires_at: datetime | None = None
    disabled_at: datetime | None = None
    disabled_reason: str = ""
    last_delivery: Delivery | None = None

    def __post_init__(self) -> None:
        for value, pattern, name in (
            (self.id, WEBHOOK_ID, "id"),
            (self.tenant, TENANT, "tenant"),
            (self.description, DESCRIPTION, "description"),
        ):
            if not pattern.fullmatch(value):
                raise ValueError(f"{name} is malformed")
        if not MIN_SECRET_BYTES <= len(self.secret) <= MAX_SECRET_BYTES:
            raise ValueError("secret is malformed")

    @property
    def key(self) -> WebhookKey:
        return WebhookKey(self.tenant, self.id)

    @property
    def enabled(self) -> bool:
        return self.disabled_at is None

    def wants(self, event: Event) -> bool:
        """Whether it receives `event`."""
        return self.enabled and event in self.events

    def secrets_at(self, now: datetime) -> tuple[bytes, ...]:
        """The secrets that sign at `now`, the current one first."""
        if self.previous_secret is None or self.previous_expires_at is None:
            return (self.secret,)
        return (self.secret, self.previous_secret)[: 2 if now < self.previous_expires_at else 1]


def new_webhook_id() -> str:
    return f"wh_{secrets.token_hex(12)}"


def new_secret() -> bytes:
    return secrets.token_bytes(SECRET_BYTES)


def secret_text(secret: bytes) -> str:
    """The secret in the form that its receiver gets."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def parse_secret(text: str) -> bytes:
    """The secret in `text`. Raises ValueError, whose message does not contain it."""
    try:
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a secret is whsec_ and base64") from None
    if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        raise ValueError(f"a secret has {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes")
    return secret


def message_id(job: str, event: str) -> str:
    """Identifies a message to its receiver: the same for every delivery of it."""
    return f"{job}.{event}"


def signature(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the base64 signature of the message; `timestamp` is in seconds since 1970."""
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def signed_headers(webhook: Webhook, message_id: str, body: bytes, now: datetime) -> dict[str, str]:
    """The headers that identify and sign a message: one signature for each valid secret."""
    return signed_by(webhook.secrets_at(now), message_id, body, now)


def signed_by(
    secrets_: Sequence[bytes], message_id: str, body: bytes, now: datetime
) -> dict[str, str]:
    """The headers that identify a message and sign it by each of the secrets."""
    timestamp = int(now.timestamp())
    signatures = [signature(secret, message_id, timestamp, body) for secret in secrets_]
    return {
        ID_HEADER: message_id,
        TIME_HEADER: str(timestamp),
        SIGNATURE_HEADER: " ".join(signatures),
    }


# --- Transitions. ---------------------------------------------------------------------------------
#
# Those that change which receiver is notified, of what and with which secret are durable. A power
# loss may undo the note of the last delivery.


@transition(durable=True)
def rotate(webhook: Webhook, now: datetime, secret: bytes, overlap: timedelta) -> Webhook:
    """Set a new secret. The old one also signs for `overlap`."""
    overlaps = overlap > timedelta()
    return replace(
        webhook,
        secret=secret,
        rotated_at=now,
        previous_secret=webhook.secret if overlaps else None,
        previous_expires_at=now + overlap if overlaps else None,
    )


@transition(durable=True)
def update(webhook: Webhook, now: datetime, change: Change) -> Webhook:
    """Apply `change`. A new URL clears the last delivery, which was to the old one.

    Raises ValueError if a field is malformed.
    """
    after = webhook
    if change.enabled is True:
        after = replace(webhook, disabled_at=None, disabled_reason="")
    elif change.enabled is False:
        after = _disabled(webhook, now, DISABLED_BY_OWNER)
    moved = change.url is not None and change.url != webhook.url
    return replace(
        after,
        url=webhook.url if change.url is None else change.url,
        events=webhook.events if change.events is None else change.events,
        description=webhook.description if change.description is None else change.description,
        last_delivery=None if moved else webhook.last_delivery,
    )


@transition(durable=False)
def note_delivery(webhook: Webhook, now: datetime, url: str, delivery: Delivery) -> Webhook | None:
    """Set `last_delivery`, of a delivery to `url`.

    Refused if the webhook has another URL by now, or if the last note says the same: a delivery
    with the same outcome less than `NOTE_INTERVAL` ago, or a later one. The outcome of a test is
    always noted, because its sender waits for it.
    """
    if webhook.url != url or not _news(webhook.last_delivery, delivery):
        return None
    return replace(webhook, last_delivery=delivery)


@transition(durable=True)
def disable(
    webhook: Webhook, now: datetime, url: str, delivery: Delivery, reason: str
) -> Webhook | None:
    """Stop all deliveries for `reason`, the outcome of a delivery to `url`, and note that one.

    Refused if the webhook has another URL by now, or if this changes nothing.
    """
    if webhook.url != url:
        return None
    last = delivery if _news(webhook.last_delivery, delivery) else webhook.last_delivery
    after = _disabled(replace(webhook, last_delivery=last), delivery.at, reason)
    return None if after == webhook else after


def _disabled(webhook: Webhook, at: datetime, reason: str) -> Webhook:
    """The first reason stays."""
    return replace(webhook, disabled_at=at, disabled_reason=reason) if webhook.enabled else webhook


def _news(last: Delivery | None, delivery: Delivery) -> bool:
    """Whether `delivery` says something that the last note does not."""
    if last is None:
        return True
    return delivery.at >= last.at and (
        delivery.event is Event.TEST
        or delivery.succeeded != last.succeeded
        or delivery.at - last.at >= NOTE_INTERVAL
    )
