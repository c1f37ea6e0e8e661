"""Webhooks: secrets and signatures of Standard Webhooks, and the transitions."""

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import standardwebhooks

from core.domain import webhooks
from core.domain.webhooks import (
    JOB_EVENTS,
    Change,
    Delivery,
    Event,
    Webhook,
    new_secret,
    new_webhook_id,
    parse_secret,
    secret_text,
    signature,
    signed_headers,
)

NOW = datetime.now(UTC)


def a_webhook(**changes: object) -> Webhook:
    values: dict[str, object] = {
        "id": new_webhook_id(),
        "tenant": "acme",
        "owner": "",
        "url": "https://example.com/",
        "events": JOB_EVENTS,
        "secret": new_secret(),
        "created_at": NOW,
        **changes,
    }
    return Webhook(**values)  # type: ignore[arg-type]


def test_signature_matches_the_published_vector() -> None:
    """The vector of the specification's reference libraries."""
    secret = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == expected


def test_reference_library_accepts_our_signature() -> None:
    now = datetime.now(UTC)  # receivers refuse messages older than five minutes
    hook = a_webhook()
    body = '{"type":"job.completed","data":{"name":"é"}}'.encode()
    headers = signed_headers(hook, "job.1", body, now)
    receiver = standardwebhooks.Webhook(secret_text(hook.secret))
    assert receiver.verify(body.decode(), headers)["type"] == "job.completed"
    for changed in (
        {**headers, "webhook-id": "job.2"},
        {**headers, "webhook-timestamp": str(int(now.timestamp()) - 1)},
        {**headers, "webhook-signature": "v1," + base64.b64encode(bytes(32)).decode()},
    ):
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            receiver.verify(body.decode(), changed)


def test_either_secret_verifies_during_a_rotation() -> None:
    now = datetime.now(UTC)
    before = a_webhook()
    after = webhooks.rotate(new_secret(), timedelta(hours=1))(before, now)
    assert after is not None
    body = b"{}"
    for at, both in ((now, True), (now + timedelta(hours=1), False)):
        headers = signed_headers(after, "job.1", body, at)
        assert len(headers["webhook-signature"].split()) == (2 if both else 1)
    headers = signed_headers(after, "job.1", body, now)
    for hook in (before, after):
        standardwebhooks.Webhook(secret_text(hook.secret)).verify("{}", headers)


def test_secret_is_long_and_random_and_not_in_the_repr() -> None:
    one, other = new_secret(), new_secret()
    assert one != other
    assert 24 <= len(one) <= 64
    assert parse_secret(secret_text(one)) == one
    hook = webhooks.rotate(other, timedelta(hours=1))(a_webhook(secret=one), NOW)
    for secret in (one, other):
        for form in (secret_text(secret), secret.hex(), repr(secret)):
            assert form not in repr(hook)


@pytest.mark.parametrize(
    "text", ["", "whsec_", "whsec_é", "whsec_!", f"whsec_{'A' * 20}", f"whsec_{'A' * 100}"]
)
def test_malformed_secret_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="secret") as refused:
        parse_secret(text)
    assert not text or text not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [{"id": "1"}, {"tenant": "A"}, {"description": "a\nb"}, {"secret": b"short"}],
)
def test_malformed_webhook_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="malformed"):
        a_webhook(**changes)


def test_enabled_webhook_receives_its_events() -> None:
    hook = a_webhook(events=frozenset({Event.JOB_FAILED}))
    assert hook.wants(Event.JOB_FAILED)
    assert not hook.wants(Event.JOB_COMPLETED)
    gone = Delivery(NOW, Event.JOB_FAILED, 410)
    off = webhooks.disable(hook.url, gone, "It answered 410.")(hook, NOW)
    assert off is not None and not off.wants(Event.JOB_FAILED)
    assert webhooks.disable(hook.url, gone, "again")(off, NOW) is None
    on = webhooks.update(Change(enabled=True))(off, NOW)
    assert on == replace(hook, last_delivery=gone)
