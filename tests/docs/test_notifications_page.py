"""docs/notifications.md: its code verifies what we send, and its tables name what there is."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from app.main import create_app
from core.domain.webhooks import JOB_EVENTS, Event, Webhook, new_secret, rotate, secret_text
from core.domain.webhooks import signed_headers as sign
from core.settings import Settings
from tests.support.api import routes_of
from tests.support.settings import isolated_settings
from tests.support.stack import ROOT

PAGE = (ROOT / "docs/notifications.md").read_text()
Verify = Callable[[str, dict[str, str], bytes], None]


@pytest.fixture
def verify() -> Verify:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    names: dict[str, Verify] = {}
    exec(code, names)
    return names["verify"]


def a_webhook() -> Webhook:
    now = datetime.now(UTC)
    id_ = "wh_" + "0" * 24
    return Webhook(id_, "acme", "", "https://example.com/", JOB_EVENTS, new_secret(), now)


def test_the_code_believes_what_we_send_and_nothing_else(verify: Verify) -> None:
    hook, now, body = a_webhook(), datetime.now(UTC), b'{"type":"job.completed"}'
    secret, headers = secret_text(hook.secret), sign(hook, "1.job.completed", body, now)
    verify(secret, headers, body)
    with pytest.raises(ValueError, match="secret"):
        verify(secret, headers, body + b" ")
    with pytest.raises(ValueError, match="secret"):
        verify(secret_text(new_secret()), headers, body)
    with pytest.raises(ValueError, match="secret"):
        verify(secret, {**headers, "webhook-id": "2.job.completed"}, body)
    old = sign(hook, "1.job.completed", body, now - timedelta(minutes=6))
    with pytest.raises(ValueError, match="old"):
        verify(secret, old, body)


def test_the_code_believes_either_secret_during_a_rotation(verify: Verify) -> None:
    before, now = a_webhook(), datetime.now(UTC)
    after = rotate(new_secret(), timedelta(hours=1))(before, now)
    assert after is not None
    headers = sign(after, "1", b"{}", now)
    for hook in (before, after):
        verify(secret_text(hook.secret), headers, b"{}")


def test_every_event_and_setting_is_named() -> None:
    rows = set(re.findall(r"^\| `((?:job|webhook)\.\w+)` \|", PAGE, re.MULTILINE))
    assert rows == {event.value for event in Event}
    named = set(re.findall(r"`([A-Z][A-Z_]{5,})`", PAGE)) - {"DATA_DIR"}
    assert named <= {name.upper() for name in Settings.model_fields}
    mine = ("webhook_", "notification_", "smtp_", "email_", "audit_")
    assert named >= {name.upper() for name in Settings.model_fields if name.startswith(mine)}


def test_every_route_is_named() -> None:
    app = create_app(isolated_settings(host="127.0.0.1"))
    there = {(m, path) for m, path, _ in routes_of(app) if path.startswith("/api/v1/webhooks")}
    cells = re.findall(r"^\| (`(?:GET|POST|PATCH|DELETE) .*?`) \|", PAGE, re.MULTILINE)
    named = {
        (method, path.replace("…", "/api/v1/webhooks").replace("{id}", "{webhook_id}"))
        for cell in cells
        for method, path in re.findall(r"`([A-Z]+) (\S+)`", cell)
    }
    assert named == there
