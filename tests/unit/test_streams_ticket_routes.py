"""`POST /api/v1/tickets`, and the streams that a ticket opens."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from app.keys.service import Issued
from app.streams import events as stream_events
from core.domain.api_keys import revoke
from core.domain.principals import Scope
from tests.support.api import Api, api_settings, bearer, open_api, serve_api
from tests.support.clock import MovableClock
from tests.support.event_streams import everything
from tests.support.jobs import running_job
from tests.support.pictures import picture, sha256

TICKETS = "/api/v1/tickets"
IMAGE = picture()
STREAM = f"/api/v1/images/{sha256(IMAGE)}/stream"
OTHER_STREAM = f"/api/v1/images/{'0' * 64}/stream"


@pytest.fixture
async def api(tmp_path: Path, colour_bundle: Path, clock: MovableClock) -> AsyncIterator[Api]:
    settings = api_settings(tmp_path, colour_bundle, api_keys="required")
    async with open_api(settings, clock) as opened:
        opened.authenticator.trusted_seconds = 0.2
        yield opened


async def ticket(api: Api, who: Issued, path: str = STREAM) -> dict[str, Any]:
    answer = await api.client.post(TICKETS, json={"path": path}, headers=bearer(who))
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    body: dict[str, Any] = answer.json()
    return body


async def finished_image(api: Api) -> Issued:
    ada = await api.issue("ada")
    await api.client.post("/api/v1/images", content=IMAGE, headers=bearer(ada))
    await api.finish_submissions()
    await api.succeed(sha256(IMAGE), "ada")
    return ada


async def test_ticket_opens_its_stream_and_nothing_else(api: Api, clock: MovableClock) -> None:
    ada = await finished_image(api)
    made = await ticket(api, ada)
    assert made["url"] == f"{STREAM}?ticket={made['ticket']}"
    assert made["expires_at"] == "2026-11-21T09:31:00.000Z"
    (event,) = await everything(api.client, made["url"])
    assert event.data["status"] == "success"
    query = {"ticket": made["ticket"]}
    for path in (OTHER_STREAM, STREAM.removesuffix("/stream"), "/api/v1/images", "/api/v1/keys"):
        answer = await api.client.get(path, params=query)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert (await api.client.get(STREAM, params={"ticket": "gtk_no"})).status_code == 401
    clock.move(60)
    assert (await api.client.get(STREAM, params=query)).status_code == 401


async def test_ticket_permits_what_its_key_permits(api: Api) -> None:
    await finished_image(api)
    bob = await api.issue("bob")
    answer = await api.client.get((await ticket(api, bob))["url"])
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    reader = await api.issue("ada", Scope.READ)
    made = await ticket(api, reader, f"/api/v1/jobs/{'0' * 32}/stream")
    answer = await api.client.get(made["url"])
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_ticket_of_a_revoked_key_opens_nothing(api: Api) -> None:
    ada = await finished_image(api)
    made = await ticket(api, ada)
    assert await api.authenticator.access.keys.change(ada.key.id, revoke())
    answer = await api.client.get(made["url"])
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize(
    "path", ["/api/v1/keys", "/api/v1/images/x/stream", STREAM + "?a=1", STREAM + "/", ""]
)
async def test_only_streams_have_tickets(api: Api, path: str) -> None:
    ada = await api.issue("ada")
    answer = await api.client.post(TICKETS, json={"path": path}, headers=bearer(ada))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_socket_with_a_ticket_stays_open_when_the_ticket_ends(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is checked while the socket is open, and it may cancel the job."""
    monkeypatch.setattr(stream_events, "HEARTBEAT_SECONDS", 0.05)
    settings = api_settings(tmp_path, colour_bundle, api_keys="required")
    async with serve_api(settings, clock) as (api, _):
        api.authenticator.trusted_seconds = 0.1
        ada = await api.issue("ada")
        key = await running_job(api.services.backend, tenant="ada", owner=ada.key.id)
        made = await ticket(api, ada, f"/api/v1/ws/jobs/{key.id}")
        async with connect(f"ws://127.0.0.1:{api.client.base_url.port}{made['url']}") as socket:
            assert json.loads(await socket.recv())["event"] == "update"
            clock.move(120)
            await socket.send('{"action": "ping"}')
            assert json.loads(await socket.recv())["event"] == "pong"
            await socket.send('{"action": "cancel"}')
            assert json.loads(await socket.recv())["event"] == "cancelled"
            assert socket.close_code in (None, 1000)


async def test_without_keys_a_ticket_is_accepted_and_not_needed(
    tmp_path: Path, colour_bundle: Path
) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        await api.client.post("/api/v1/images", content=IMAGE)
        await api.finish_submissions()
        await api.succeed(sha256(IMAGE))
        made = (await api.client.post(TICKETS, json={"path": STREAM})).json()
        for url in (made["url"], STREAM):
            (event,) = await everything(api.client, url)
            assert event.data["status"] == "success"
