"""A webhook: where a tenant wants to be told of what happens, and the only changes it can undergo.

Stores keep webhooks and do not decide: each function takes one and returns the next, or None where
the change is refused. Times are timezone-aware UTC. Secrets and signatures are those of Standard
Webhooks: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from core.domain.records import TENANT

WEBHOOK_ID = re.compile(r"wh_[0-9a-f]{24}")
DESCRIPTION = re.compile(r"[^\x00-\x1f\x7f]{0,200}")
LONGEST_URL = 2048
MOST_WEBHOOKS = 20  # of one tenant
# A busy receiver is told often, and each note is a write: of equal ends one in this time is noted.
NOTE_INTERVAL = timedelta(minutes=1)
TURNED_OFF = "It was turned off."

SECRET_PREFIX = "whsec_"  # noqa: S105 - how every secret begins, and no secret
SECRET_BYTES = 32
FEWEST_SECRET_BYTES, MOST_SECRET_BYTES = 24, 64  # the specification's bounds

# Header names as the specification spells them.
ID_HEADER = "webhook-id"
TIME_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"


class Event(StrEnum):
    """What a webhook can be told."""

    JOB_COMPLETED = "job.completed"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    TEST = "webhook.test"  # sent to one webhook because somebody asked for it


JOB_EVENTS = frozenset({Event.JOB_COMPLETED, Event.JOB_FAILED, Event.JOB_CANCELLED})


@dataclass(frozen=True, slots=True)
class Delivery:
    """How an attempt to tell a webhook of `event` ended.

    `status` is the answer's. Without an answer it is None, and `error` is the code of what was
    wrong.
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
    """What is to be different about a webhook; None stays as it is."""

    url: str | None = None
    events: frozenset[Event] | None = None
    description: str | None = None
    enabled: bool | None = None


@dataclass(frozen=True, slots=True)
class Webhook:
    """`events` are those it is told; `owner` is the key that made it, empty for anyone.

    After a rotation what is sent carries a signature of each secret until `previous_expires_at`.
    A webhook is enabled while `disabled_at` is None. `last_delivery` is to its present URL.
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
        if not FEWEST_SECRET_BYTES <= len(self.secret) <= MOST_SECRET_BYTES:
            raise ValueError("secret is malformed")

    @property
    def enabled(self) -> bool:
        return self.disabled_at is None

    def wants(self, event: Event) -> bool:
        """Whether it is to be told of `event`."""
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
    """The secret as a receiver is given it."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def parse_secret(text: str) -> bytes:
    """The secret in `text`. Raises ValueError, which does not repeat it."""
    try:
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a secret is whsec_ and base64") from None
    if not FEWEST_SECRET_BYTES <= len(secret) <= MOST_SECRET_BYTES:
        raise ValueError(f"a secret has {FEWEST_SECRET_BYTES} to {MOST_SECRET_BYTES} bytes")
    return secret


def message_id(job: str, event: str) -> str:
    """What a receiver knows a message by: the same, however often it is delivered."""
    return f"{job}.{event}"


def signature(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the signature of the message; `timestamp` is in seconds since 1970."""
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def signed_headers(webhook: Webhook, message_id: str, body: bytes, now: datetime) -> dict[str, str]:
    """What identifies and proves a message: one signature for each secret that is good at `now`."""
    timestamp = int(now.timestamp())
    signatures = [
        signature(secret, message_id, timestamp, body) for secret in webhook.secrets_at(now)
    ]
    return {
        ID_HEADER: message_id,
        TIME_HEADER: str(timestamp),
        SIGNATURE_HEADER: " ".join(signatures),
    }


def rotated(webhook: Webhook, secret: bytes, overlap: timedelta, now: datetime) -> Webhook:
    """With a new secret; the old one goes on signing for `overlap`."""
    overlaps = overlap > timedelta()
    return replace(
        webhook,
        secret=secret,
        rotated_at=now,
        previous_secret=webhook.secret if overlaps else None,
        previous_expires_at=now + overlap if overlaps else None,
    )


def disabled(webhook: Webhook, reason: str, now: datetime) -> Webhook | None:
    """Told nothing any more. Refused where it is so already: the first reason stays."""
    if not webhook.enabled:
        return None
    return replace(webhook, disabled_at=now, disabled_reason=reason)


def enabled(webhook: Webhook) -> Webhook | None:
    """Told again. Refused where it is so already."""
    if webhook.enabled:
        return None
    return replace(webhook, disabled_at=None, disabled_reason="")


def changed(webhook: Webhook, change: Change, now: datetime) -> Webhook:
    """As the change says. Nothing is known yet of deliveries to another URL than before."""
    after = webhook
    if change.enabled is not None:
        after = (
            enabled(webhook) if change.enabled else disabled(webhook, TURNED_OFF, now)
        ) or after
    moved = change.url is not None and change.url != webhook.url
    return replace(
        after,
        url=webhook.url if change.url is None else change.url,
        events=webhook.events if change.events is None else change.events,
        description=webhook.description if change.description is None else change.description,
        last_delivery=None if moved else webhook.last_delivery,
    )


def noted(webhook: Webhook, url: str, delivery: Delivery, gone: str = "") -> Webhook | None:
    """With a delivery to `url` noted; with `gone`, a reason, disabled as well.

    Refused where it has another URL by now, and where the note before says as much: one that ended
    as well or as ill, less than `NOTE_INTERVAL` ago, or a later one. A test is always noted, for
    somebody waits for it.
    """
    if webhook.url != url:
        return None
    before = webhook.last_delivery
    if before is None:
        news = True
    elif delivery.at < before.at:
        news = False
    else:
        news = (
            delivery.event is Event.TEST
            or delivery.succeeded != before.succeeded
            or delivery.at - before.at >= NOTE_INTERVAL
        )
    after = replace(webhook, last_delivery=delivery) if news else webhook
    if gone:
        after = disabled(after, gone, delivery.at) or after
    return None if after is webhook else after
