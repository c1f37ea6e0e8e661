"""Verify webhook deliveries (Standard Webhooks, https://www.standardwebhooks.com)."""

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Iterable, Mapping
from datetime import datetime

from glimpse_client.errors import InvalidSignature
from glimpse_client.types import WebhookEvent

TOLERANCE = 300  # seconds that the sender's clock may differ


def verify(
    secrets: str | Iterable[str],
    headers: Mapping[str, str],
    body: bytes | str,
    *,
    now: float | None = None,
) -> WebhookEvent:
    """The event of a delivery that one of `secrets` (`whsec_…`) has signed.

    `headers` are those of the request in any case of letters, `body` its raw bytes. `now` is in
    seconds since 1970. Raises InvalidSignature.
    """
    raw = body.encode() if isinstance(body, str) else body
    given = {name.lower(): value for name, value in headers.items()}
    try:
        id_, sent = given["webhook-id"], given["webhook-timestamp"]
        signatures = given["webhook-signature"].split()
        sent_at = int(sent)
    except (KeyError, ValueError):
        raise InvalidSignature("a webhook header is missing or malformed") from None
    if abs((time.time() if now is None else now) - sent_at) > TOLERANCE:
        raise InvalidSignature("the timestamp is more than five minutes away")
    signed = b"%b.%d.%b" % (id_.encode(), sent_at, raw)
    for secret in (secrets,) if isinstance(secrets, str) else secrets:
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            raise InvalidSignature("a secret is not of the form whsec_…") from None
        expected = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        if any(hmac.compare_digest(expected.encode(), each.encode()) for each in signatures):
            break
    else:
        raise InvalidSignature("no signature matches a secret")
    document = json.loads(raw)
    return WebhookEvent(
        id_,
        str(document["type"]),
        datetime.fromisoformat(str(document["timestamp"])),
        document.get("data") or {},
    )
