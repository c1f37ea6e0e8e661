"""`/api/v1/webhooks`: creation, changes, secrets, tests and deletion."""

import asyncio
import json
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from core.clock import rfc3339
from core.domain import webhooks
from core.domain.principals import Scope
from core.domain.webhooks import MAX_WEBHOOKS, Delivery, Event, WebhookKey, parse_secret
from core.outbound import http_client
from tests.support.api import Api, api_settings, bearer, open_api, routes_of
from tests.support.problems import assert_problem

URL = "/api/v1/webhooks"
HOOK = "https://93.184.215.14/hooks?token=abc"  # an address: no name server is needed


async def made(api: Api, **body: Any) -> dict[str, Any]:
    answer = await api.client.post(URL, json={"url": HOOK, **body})
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def messages(api: Api) -> list[dict[str, str]]:
    """Return the attributes of the published messages."""
    path = api.settings.data_dir / "queue.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT attributes FROM messages ORDER BY id").fetchall()
    return [json.loads(row[0]) for row in rows]


async def test_webhook_is_created_and_its_secret_is_shown_once(api: Api) -> None:
    answer = await api.client.post(URL, json={"url": HOOK, "description": "Orders, é"})
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    secret = document.pop("secret")
    assert secret.startswith("whsec_") and len(parse_secret(secret)) == 32
    assert document == {
        "id": document["id"],
        "url": HOOK,
        "description": "Orders, é",
        "events": ["job.cancelled", "job.completed", "job.failed"],
        "enabled": True,
        "disabled_at": None,
        "disabled_reason": None,
        "created_at": document["created_at"],
        "created_by": None,
        "rotated_at": None,
        "previous_expires_at": None,
        "last_delivery": None,
    }
    one = await api.client.get(f"{URL}/{document['id']}")
    listed = await api.client.get(URL)
    assert one.json() == document
    assert listed.json() == {"webhooks": [document]}
    for later in (one, listed):
        assert "whsec_" not in later.text


async def test_webhook_gets_the_events_that_it_selects(api: Api) -> None:
    document = await made(api, events=["job.failed"])
    assert document["events"] == ["job.failed"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": ""},
        {"url": "not a url"},
        {"url": "http://93.184.215.14/"},
        {"url": "ftp://93.184.215.14/"},
        {"url": "https://user:pw@93.184.215.14/"},
        {"url": "https://93.184.215.14/#x"},
        {"url": "https://93.184.215.14/" + "a" * 2048},
        {"url": HOOK, "events": []},
        {"url": HOOK, "events": ["webhook.test"]},
        {"url": HOOK, "events": ["job.started"]},
        {"url": HOOK, "description": "a\nb"},
        {"url": HOOK, "description": "a" * 201},
        {"url": HOOK, "tenant": "other"},
        {"url": HOOK, "secret": "whsec_AAAA"},
        {"url": 7},
    ],
)
async def test_invalid_webhook_is_refused(api: Api, body: dict[str, Any]) -> None:
    answer = await api.client.post(URL, json=body)
    assert_problem(answer, 422, "invalid_request")
    assert (await api.client.get(URL)).json() == {"webhooks": []}


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "0.0.0.0"),
        *("[::ffff:127.0.0.1]", "[64:ff9b::a9fe:a9fe]", "[2002:7f00:1::]", "[fd00::1]"),
    ],
)
async def test_private_address_is_refused_with_its_own_code(api: Api, host: str) -> None:
    answer = await api.client.post(URL, json={"url": f"https://{host}/hook"})
    assert (answer.status_code, answer.json()["code"]) == (422, "private_address")
    assert host not in answer.text
    assert (await api.client.get(URL)).json() == {"webhooks": []}


async def test_setting_allows_private_addresses(tmp_path: Path, colour_bundle: Path) -> None:
    settings = api_settings(tmp_path, colour_bundle, webhook_allow_private=True)
    async with open_api(settings) as api:
        await made(api, url="http://localhost:8000/hook")


async def test_name_server_that_hangs_does_not_delay_a_request_long(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The webhook is created: each delivery checks the address again."""
    answering = threading.Event()

    def hang(*arguments: object) -> list[Any]:
        answering.wait(30)
        return []

    monkeypatch.setattr("app.webhooks.service.CHECK_SECONDS", 0.01)
    monkeypatch.setattr(http_client, "_look_up", hang)
    try:
        async with asyncio.timeout(10):
            await made(api, url="https://hooks.example/")
    finally:
        answering.set()


async def test_number_of_webhooks_is_limited(api: Api) -> None:
    answers = await asyncio.gather(
        *(api.client.post(URL, json={"url": HOOK}) for _ in range(MAX_WEBHOOKS + 3))
    )
    assert sorted(answer.status_code for answer in answers) == [201] * MAX_WEBHOOKS + [409] * 3
    first = (await api.client.get(URL)).json()["webhooks"][0]["id"]
    assert (await api.client.delete(f"{URL}/{first}")).status_code == 204
    await made(api)


async def test_rotation_shows_the_new_secret_and_the_overlap(api: Api) -> None:
    document = await made(api)
    path = f"{URL}/{document['id']}/rotate"
    rotated = (await api.client.post(path, json={"overlap_seconds": 60})).json()
    assert rotated["secret"] not in ("", document["secret"])
    assert rotated["rotated_at"] < rotated["previous_expires_at"]
    at_once = (await api.client.post(path, json={"overlap_seconds": 0})).json()
    assert at_once["previous_expires_at"] is None
    assert (await api.client.post(path)).json()["previous_expires_at"] is not None
    stored = await api.services.backend.webhooks.get(WebhookKey("public", document["id"]))
    assert stored is not None and stored.previous_secret == parse_secret(at_once["secret"])
    for wrong in ({"overlap_seconds": -1}, {"overlap_seconds": 8 * 86400}, {"overlap": 1}):
        assert (await api.client.post(path, json=wrong)).status_code == 422


async def test_test_event_is_published_for_one_webhook(api: Api) -> None:
    document = await made(api, events=["job.failed"])
    answer = await api.client.post(f"{URL}/{document['id']}/test")
    assert answer.status_code == 202
    (message,) = messages(api)
    assert message["kind"] == "notify" and message["target"] == document["id"]
    assert message["event"] == "webhook.test"
    assert answer.json() == {"message_id": f"{message['job']}.webhook.test"}


async def test_disabled_webhook_shows_the_reason_and_can_be_enabled(api: Api) -> None:
    document = await made(api)
    path = f"{URL}/{document['id']}"
    told = Delivery(datetime.now(UTC), Event.JOB_FAILED, 410)
    store = api.services.backend.webhooks
    key = WebhookKey("public", document["id"])
    assert await store.change(key, webhooks.disable(HOOK, told, "It answered 410."))
    shown = (await api.client.get(path)).json()
    assert (shown["enabled"], shown["disabled_reason"]) == (False, "It answered 410.")
    assert shown["disabled_at"] is not None
    assert (await api.client.post(f"{path}/test")).status_code == 409
    for _ in range(2):
        enabled = await api.client.post(f"{path}/enable")
        assert enabled.status_code == 200 and enabled.json()["enabled"]
    assert (await api.client.post(f"{path}/test")).status_code == 202


# --- Changes --------------------------------------------------------------------------------------

MERGE_PATCH = "application/merge-patch+json"
ALL_EVENTS = ["job.cancelled", "job.completed", "job.failed"]


async def patch(
    api: Api, id_: str, body: object, content_type: str = MERGE_PATCH, **headers: str
) -> httpx.Response:
    return await api.client.patch(
        f"{URL}/{id_}",
        content=body if isinstance(body, bytes) else json.dumps(body).encode(),
        headers={"Content-Type": content_type, **headers},
    )


async def shown(api: Api, id_: str) -> dict[str, Any]:
    document: dict[str, Any] = (await api.client.get(f"{URL}/{id_}")).json()
    return document


async def test_patch_changes_only_its_members(api: Api) -> None:
    before = await made(api, description="Orders")
    secret = before.pop("secret")
    steps: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"url": HOOK + "2"}, {"url": HOOK + "2"}),
        ({"events": ["job.failed"]}, {"events": ["job.failed"]}),
        ({"description": "é"}, {"description": "é"}),
        # RFC 7396: null removes a member, which then has its default.
        ({"events": None, "description": None}, {"events": ALL_EVENTS, "description": ""}),
        ({"enabled": None}, {}),
        ({"url": HOOK, "description": "Orders"}, {"url": HOOK, "description": "Orders"}),
    ]
    expected = dict(before)
    for body, difference in steps:
        expected |= difference
        answer = await patch(api, before["id"], body)
        assert (answer.status_code, answer.json()) == (200, expected), body
        assert answer.headers["cache-control"] == "no-store"
        assert await shown(api, before["id"]) == expected
    assert expected == before
    stored = await api.services.backend.webhooks.get(WebhookKey("public", before["id"]))
    assert stored is not None and stored.secret == parse_secret(secret)
    as_json = await patch(api, before["id"], {"description": ""}, "application/json; charset=utf-8")
    assert as_json.status_code == 200


async def test_patch_disables_and_enables_a_webhook(api: Api) -> None:
    document = await made(api)
    id_ = document["id"]
    off = (await patch(api, id_, {"enabled": False})).json()
    assert (off["enabled"], off["disabled_reason"]) == (False, "It was turned off.")
    assert off["disabled_at"] is not None
    assert (await patch(api, id_, {"enabled": False})).json() == off
    assert (await api.client.post(f"{URL}/{id_}/test")).status_code == 409
    # Enabling clears the reason, as the route `enable` does.
    on = (await patch(api, id_, {"enabled": True, "events": ["job.failed"]})).json()
    assert on == {
        **{name: value for name, value in document.items() if name != "secret"},
        "events": ["job.failed"],
    }


async def test_new_url_clears_the_last_delivery(api: Api) -> None:
    id_ = (await made(api))["id"]
    at = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
    for told, expected in (
        (Delivery(at, Event.JOB_FAILED, 500), {"status": 500, "error": None}),
        (
            Delivery(at + timedelta(minutes=1), Event.JOB_FAILED, None, "no_answer"),
            {"status": None, "error": "no_answer"},
        ),
    ):
        assert await api.services.backend.webhooks.change(
            WebhookKey("public", id_), webhooks.note_delivery(HOOK, told)
        )
        last = (await shown(api, id_))["last_delivery"]
        assert last == {"at": rfc3339(told.at), "event": "job.failed", **expected}
    assert (await patch(api, id_, {"url": HOOK})).json()["last_delivery"] == last
    assert (await patch(api, id_, {"url": HOOK + "2"})).json()["last_delivery"] is None


@pytest.mark.parametrize(
    "body",
    [
        *({"url": None}, {"url": ""}, {"url": "http://93.184.215.14/"}, {"url": 7}),
        *({"url": "https://127.0.0.1/"}, {"url": "https://93.184.215.14/" + "a" * 2048}),
        *({"events": []}, {"events": ["webhook.test"]}, {"events": "job.failed"}),
        *({"description": "a\nb"}, {"description": "a" * 201}),
        *({"enabled": "yes"}, {"enabled": 1}),
        *({"id": "wh_" + "0" * 24}, {"secret": "whsec_AAAA"}, {"tenant": "other"}),
        *({"last_delivery": None}, {"url": HOOK + "2", "disabled_reason": ""}),
        *([], None, "text", 7, b"{", b"[" * 10_000),
    ],
)
async def test_invalid_patch_changes_nothing(api: Api, body: object) -> None:
    document = await made(api)
    answer = await patch(api, document["id"], body)
    private = body == {"url": "https://127.0.0.1/"}
    assert_problem(answer, 422, "private_address" if private else "invalid_request")
    document.pop("secret")
    assert await shown(api, document["id"]) == document


@pytest.mark.parametrize("content_type", ["application/json-patch+json", "text/plain", ""])
async def test_other_content_types_of_patches_are_refused(api: Api, content_type: str) -> None:
    document = await made(api)
    answer = await patch(api, document["id"], {"enabled": False}, content_type)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert answer.headers["accept-patch"] == MERGE_PATCH
    assert (await shown(api, document["id"]))["enabled"]


async def test_change_is_logged_without_the_url(
    api: Api,
) -> None:
    id_ = (await made(api))["id"]
    with structlog.testing.capture_logs() as lines:
        await patch(api, id_, {"url": HOOK + "2"})
        await patch(api, id_, {"url": HOOK + "2"})  # nothing changes
    changed = [line for line in lines if line["event"] == "webhook changed"]
    assert [(line["webhook"], line["tenant"], line["enabled"]) for line in changed] == [
        (id_, "public", True)
    ]
    assert "token=" not in str(lines)


@pytest.mark.parametrize("id_", ["wh_" + "0" * 24, "wh_", "x", "WH_" + "0" * 24, "%00"])
async def test_unknown_webhook_is_not_found(api: Api, id_: str) -> None:
    answers: list[httpx.Response] = [
        await api.client.get(f"{URL}/{id_}"),
        await api.client.delete(f"{URL}/{id_}"),
        await patch(api, id_, {"enabled": False}),
        *[await api.client.post(f"{URL}/{id_}/{what}") for what in ("rotate", "test", "enable")],
    ]
    assert {answer.status_code for answer in answers} == {404}


async def test_only_an_administrator_may_read_or_change_webhooks(
    tmp_path: Path, colour_bundle: Path
) -> None:
    """Reading, too: the URL of a receiver often contains a secret."""
    async with open_api(api_settings(tmp_path, colour_bundle, api_keys="required")) as api:
        ours = [(m, p) for m, p, _ in routes_of(api.app) if p.startswith(URL)]
        assert len(ours) == 8
        others = await api.issue("acme", Scope.CLASSIFY, Scope.READ, Scope.JOBS)
        for method, route in ours:
            path = route.replace("{webhook_id}", "wh_" + "0" * 24)
            answer = await api.client.request(method, path, headers=bearer(others))
            assert answer.status_code == 403, f"{method} {path}"
        admin = await api.issue("acme")
        answer = await api.client.post(URL, json={"url": HOOK}, headers=bearer(admin))
        assert answer.json()["created_by"] == admin.key.id
