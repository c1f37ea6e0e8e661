"""The client verifies what `core.domain.webhooks` signs."""

import json

import pytest
from glimpse_client import InvalidSignature, verify_webhook
from standardwebhooks import Webhook as Standard

SECRET = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"
OTHER = "whsec_OTg3NjU0MzIxMDk4NzY1NDMyMTA5ODc2"
NOW = 1_796_040_000
BODY = json.dumps(
    {"type": "job.completed", "timestamp": "2026-11-30T12:00:00Z", "data": {"job_id": "j"}}
).encode()


def signed(secret: str = SECRET, body: bytes = BODY, at: int = NOW) -> dict[str, str]:
    from datetime import UTC, datetime

    signature = Standard(secret).sign("msg_1", datetime.fromtimestamp(at, UTC), body.decode())
    return {"Webhook-Id": "msg_1", "webhook-timestamp": str(at), "webhook-signature": signature}


def test_a_signed_delivery_is_an_event() -> None:
    event = verify_webhook(SECRET, signed(), BODY, now=NOW)
    assert (event.id, event.type, event.data) == ("msg_1", "job.completed", {"job_id": "j"})
    assert verify_webhook([OTHER, SECRET], signed(), BODY.decode(), now=NOW + 299).id == "msg_1"


def test_one_of_two_signatures_is_enough() -> None:
    headers = signed()
    headers["webhook-signature"] = (
        f"{signed(OTHER)['webhook-signature']} {headers['webhook-signature']}"
    )
    assert verify_webhook(SECRET, headers, BODY, now=NOW).id == "msg_1"


@pytest.mark.parametrize(
    "break_it",
    [
        lambda headers: headers.update({"webhook-timestamp": str(NOW + 1)}),
        lambda headers: headers.update({"Webhook-Id": "msg_2"}),
        lambda headers: headers.update({"webhook-signature": "v1,AAAA"}),
        lambda headers: headers.update({"webhook-signature": ""}),
        lambda headers: headers.update({"webhook-timestamp": "now"}),
        lambda headers: headers.pop("webhook-signature"),
        lambda headers: headers.pop("Webhook-Id"),
    ],
)
def test_changed_signature_is_refused(break_it: object) -> None:
    headers = signed()
    break_it(headers)  # type: ignore[operator]
    with pytest.raises(InvalidSignature):
        verify_webhook(SECRET, headers, BODY, now=NOW)


def test_other_secrets_bodies_and_times_are_refused() -> None:
    for arguments in (
        (OTHER, signed(), BODY, NOW),
        ("whsec_not base64!", signed(), BODY, NOW),
        (SECRET, signed(), BODY + b" ", NOW),
        (SECRET, signed(), BODY, NOW + 301),
        (SECRET, signed(), BODY, NOW - 301),
    ):
        secret, headers, body, now = arguments
        with pytest.raises(InvalidSignature):
            verify_webhook(secret, headers, body, now=now)
