"""A job's events over both transports, and the WebSocket protocol, over real connections."""

import asyncio
import json
import logging
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import WebSocketRoute
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import Event

from app.streams import events, send_timeout
from core.backends import Backend
from core.clock import utc_now
from core.domain import jobs
from core.domain.api_keys import revoke
from core.domain.jobs import JobItem, JobKey, JobStatus, new_job, new_job_id
from core.domain.principals import Scope
from core.domain.records import PUBLIC_TENANT, RecordError
from core.http.route_access import check_every_route
from tests.support.api import Api, api_settings, bearer, eventually, serve_api, sockets_of
from tests.support.event_streams import Received, everything, reading
from tests.support.jobs import MODEL, complete_item, job_of, running_job
from tests.support.live_streams import (
    TIMEOUT,
    connected,
    opened,
    polled,
    released,
    sending,
    serve_streams,
    stoppable,
)
from tests.support.metrics import samples, series
from tests.support.problems import assert_problem
from tests.support.scripted_worker import until


@pytest.fixture
async def served(tmp_path: Path, colour_bundle: Path) -> AsyncIterator[Api]:
    async with serve_streams(api_settings(tmp_path, colour_bundle)) as api:
        yield api


def backend_of(api: Api) -> Backend:
    return api.services.backend


def stream_of(key: JobKey) -> str:
    return f"/api/v1/jobs/{key.id}/stream"


def socket_of(api: Api, job_id: str, query: str = "") -> str:
    return f"ws://127.0.0.1:{api.client.base_url.port}/api/v1/ws/jobs/{job_id}{query}"


async def messages(ws: ClientConnection) -> list[dict[str, Any]]:
    """Every message until the server closes the socket."""
    received = []
    with suppress(ConnectionClosed):  # raised for any code but 1000
        async with asyncio.timeout(TIMEOUT):
            while True:
                received.append(json.loads(await ws.recv()))
    return received


def check_order(events: list[Received]) -> None:
    ids, kinds = [int(event.id) for event in events], [event.event for event in events]
    progress = [event.data["progress"] for event in events]
    assert ids == sorted(set(ids))
    assert progress == sorted(progress)
    assert kinds[:-1] == ["update"] * (len(kinds) - 1)


# --- Server-sent events ---------------------------------------------------------------------------


async def test_stream_of_a_job_sends_progress_and_the_end(served: Api) -> None:
    backend = backend_of(served)
    key = await running_job(backend)
    async with reading(served.client, stream_of(key)) as reader:
        events = reader.events()
        seen = [await anext(events)]
        for position in range(4):
            await complete_item(backend, key, position, broken=position == 2)
            if position < 3:
                seen.append(await anext(events))
        seen += [event async for event in events]
    job = await job_of(backend, key)
    assert [event.data["progress"] for event in seen] == [0, 25, 50, 75, 100]
    check_order(seen)
    assert (seen[-1].event, int(seen[-1].id)) == ("complete", job.revision)
    answer = await served.client.get(f"/api/v1/jobs/{key.id}")
    assert seen[-1].data == answer.json()
    again = await served.client.get(stream_of(key), headers={"Last-Event-ID": seen[-1].id})
    assert again.status_code == 204


async def test_cancelled_job_ends_the_stream_with_cancelled(served: Api) -> None:
    key = await running_job(backend_of(served))
    async with reading(served.client, stream_of(key)) as reader:
        events = reader.events()
        await anext(events)
        assert (await served.client.delete(f"/api/v1/jobs/{key.id}")).status_code == 200
        (end,) = [event async for event in events]
    assert (end.event, end.data["status"], end.data["cancelled"]) == ("cancelled", "cancelled", 4)


async def test_unsealed_job_has_no_stream(served: Api) -> None:
    backend = backend_of(served)
    key = JobKey(PUBLIC_TENANT, new_job_id())
    assert await backend.jobs.create(new_job(key, "", MODEL, 1, utc_now()))
    for id_ in (key.id, new_job_id(), "cat"):
        answer = await served.client.get(f"/api/v1/jobs/{id_}/stream")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    await backend.jobs.add_items(key, [JobItem(0, "0" * 64)])
    assert await backend.jobs.change(key, jobs.seal())
    async with reading(served.client, stream_of(key)) as reader:
        assert (await anext(reader.events())).data["status"] == "pending"


async def test_client_with_a_bad_connection_misses_and_repeats_no_event(
    served: Api,
) -> None:
    """It also changes between the transports, which use the same ids."""
    backend = backend_of(served)
    key = await running_job(backend, 40)
    draw = random.Random(6)

    async def work() -> None:
        for position in draw.sample(range(40), 40):
            await polled(served.services.job_poller, int(draw.random() < 0.2))
            await complete_item(backend, key, position, broken=draw.random() < 0.1)

    working = asyncio.create_task(work())
    seen: list[Received] = []
    connection = 0
    while not seen or seen[-1].event == "update":
        connection += 1
        lost = connection % 2 == 0
        event = await next_event(
            served, key, seen[-1].id if seen else "", socket_=connection % 3 == 0
        )
        if not lost:
            seen.append(event)
    await working
    check_order(seen)
    assert seen[-1].event == "complete"
    assert seen[-1].data["succeeded"] + seen[-1].data["failed"] == 40


async def next_event(api: Api, key: JobKey, last_id: str, *, socket_: bool) -> Received:
    async with asyncio.timeout(TIMEOUT):
        if socket_:
            query = f"?last_event_id={last_id}" if last_id else ""
            async with connect(socket_of(api, key.id, query)) as ws:
                message = json.loads(await ws.recv())
                return Received(str(message["id"]), message["event"], message["data"])
        async with reading(api.client, stream_of(key), last_id) as reader:
            return await anext(reader.events())


# --- WebSockets -----------------------------------------------------------------------------------


async def test_socket_sends_the_same_events_and_closes_after_the_last(served: Api) -> None:
    backend = backend_of(served)
    key = await running_job(backend, 2)
    async with connect(socket_of(served, key.id)) as ws:
        first = json.loads(await ws.recv())
        assert first.keys() == {"id", "event", "data"}
        assert (first["event"], first["data"]["job_id"]) == ("update", key.id)
        await complete_item(backend, key, 0)
        await complete_item(backend, key, 1)
        rest = await messages(ws)
        assert ws.close_code == 1000
    assert rest[-1]["event"] == "complete"
    (event,) = await everything(served.client, stream_of(key))
    assert rest[-1] == {"id": int(event.id), "event": event.event, "data": event.data}
    # After a reconnect: the last event again, or none if the client has it.
    async with connect(socket_of(served, key.id, f"?last_event_id={first['id']}")) as ws:
        assert await messages(ws) == rest[-1:]
    async with connect(socket_of(served, key.id, f"?last_event_id={rest[-1]['id']}")) as ws:
        assert await messages(ws) == []
        assert ws.close_code == 1000


async def test_client_cancels_its_job(served: Api) -> None:
    key = await running_job(backend_of(served))
    async with (
        connect(socket_of(served, key.id)) as ws,
        connect(socket_of(served, key.id)) as other,
    ):
        await ws.recv()
        await ws.send('{"action": "cancel"}')
        (end,) = await messages(ws)
        seen = await messages(other)
    assert (end["event"], end["data"]["status"]) == ("cancelled", "cancelled")
    assert seen[-1] == end
    assert (await job_of(backend_of(served), key)).status is JobStatus.CANCELLED


async def test_invalid_messages_are_refused_and_the_socket_stays_open(served: Api) -> None:
    backend = backend_of(served)
    key = await running_job(backend, 1)
    async with connect(socket_of(served, key.id)) as ws:
        await ws.recv()
        for invalid in ("", "cancel", "[]", '{"action": ["cancel"]}', '{"action": "no"}', b"\0\1"):
            await ws.send(invalid)
            answer = json.loads(await ws.recv())
            assert answer["id"] is None
            assert (answer["event"], answer["data"]["code"]) == ("refused", "invalid_request")
        await ws.send("[" * 4000)
        assert json.loads(await ws.recv())["event"] == "refused"
        await ws.send('{"action": "ping"}')
        assert json.loads(await ws.recv()) == {"id": None, "event": "pong", "data": None}
        await (await ws.ping())
        await complete_item(backend, key, 0)
        assert [message["event"] for message in await messages(ws)] == ["complete"]


async def test_too_many_invalid_messages_close_the_socket(served: Api) -> None:
    key = await running_job(backend_of(served))
    async with connect(socket_of(served, key.id)) as ws:
        await ws.recv()
        for _ in range(11):
            await ws.send("invalid")
        assert len(await messages(ws)) == 10
        assert ws.close_code == 1008


async def test_message_length_is_limited(served: Api) -> None:
    key = await running_job(backend_of(served))
    async with connect(socket_of(served, key.id)) as ws:
        await ws.recv()
        await ws.send("x" * 4097)
        assert await messages(ws) == []
        assert ws.close_code == 1009


async def test_cancelling_a_finished_job_is_refused(served: Api) -> None:
    """The socket sends the end half a second late; until then the client may cancel."""
    backend = backend_of(served)
    key = await running_job(backend, 1)
    async with connect(socket_of(served, key.id)) as ws:
        await ws.recv()
        await complete_item(backend, key, 0)
        with suppress(ConnectionClosed):  # the end was sent already
            await ws.send('{"action": "cancel"}')
        seen = await messages(ws)
    assert seen[-1]["event"] == "complete"
    assert [m["data"]["code"] for m in seen if m["event"] == "refused"] in ([], ["conflict"])
    assert (await job_of(backend, key)).status is JobStatus.COMPLETED


async def closing_code(
    address: str, **options: Any
) -> tuple[int | None, str, list[dict[str, Any]]]:
    async with connect(address, **options) as ws:
        said = await messages(ws)
        return ws.close_code, ws.close_reason or "", said


async def test_socket_requires_the_same_rights_as_a_request(
    tmp_path: Path, colour_bundle: Path
) -> None:
    settings = api_settings(tmp_path, colour_bundle, api_keys="required", rate_limit="1000/minute")
    async with serve_api(settings) as (api, _):
        ada, bob = await api.issue("acme", Scope.JOBS), await api.issue("acme", Scope.JOBS)
        chief, eve = await api.issue("acme"), await api.issue("evil")
        reader = await api.issue("acme", Scope.READ)
        key = await running_job(backend_of(api), tenant="acme", owner=ada.key.id)
        address = socket_of(api, key.id)
        for who, status, code in (
            (None, 401, "unauthenticated"),
            (reader, 403, "forbidden"),
            (bob, 403, "forbidden"),
            (eve, 404, "not_found"),
        ):
            headers = {} if who is None else bearer(who)
            closed, reason, said = await closing_code(address, additional_headers=headers)
            assert (closed, reason) == (4000 + status, code)
            assert [(m["event"], m["data"]["code"]) for m in said] == [("failed", code)]
            answer = await api.client.get(stream_of(key), headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (status, code)
        for who in (ada, chief):
            async with connect(address, additional_headers=bearer(who)) as ws:
                assert json.loads(await ws.recv())["event"] == "update"
        # A key that was revoked while its socket is open cannot cancel.
        async with connect(address, additional_headers=bearer(ada)) as ws:
            await ws.recv()
            assert await api.authenticator.access.keys.change(ada.key.id, revoke())
            api.authenticator.forget(ada.key.id)
            await ws.send('{"action": "cancel"}')
            answer = json.loads(await ws.recv())
            assert (answer["event"], answer["data"]["code"]) == ("refused", "unauthenticated")
        assert (await job_of(backend_of(api), key)).status is JobStatus.RUNNING
        await eventually(lambda: released(api))


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ((), None, True),
        ((), "http://{host}", True),
        ((), "https://evil.example", False),
        ((), "null", False),
        (("https://app.example",), "https://app.example", True),
        (("https://app.example",), "https://evil.example", False),
        (("*",), "https://evil.example", True),
    ],
)
async def test_pages_of_other_origins_cannot_open_a_socket(
    tmp_path: Path,
    colour_bundle: Path,
    origins: tuple[str, ...],
    origin: str | None,
    allowed: bool,
) -> None:
    async with serve_api(api_settings(tmp_path, colour_bundle, cors_origins=origins)) as (
        api,
        port,
    ):
        key = await running_job(backend_of(api), 1)
        await complete_item(backend_of(api), key, 0)
        claimed = origin and origin.format(host=f"127.0.0.1:{port}")
        code, _, _ = await closing_code(socket_of(api, key.id), origin=claimed)
        assert code == (1000 if allowed else 4403)


async def test_invalid_handshake_is_refused(served: Api) -> None:
    key = await running_job(backend_of(served))
    address = socket_of(served, key.id)
    for more, status in (
        # More than the WebSocket library reads, in a line and in lines.
        ({"X-Long": "x" * 9000}, 431),
        ({f"X-{n}": "x" for n in range(130)}, 431),
    ):
        with pytest.raises(InvalidStatus) as refused:
            async with connect(address, additional_headers=more):
                pass
        assert refused.value.response.status_code == status
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
    path = f"/api/v1/ws/jobs/{key.id}"
    assert (await served.client.get(path, headers=upgrade)).status_code in (400, 426)
    assert (await served.client.post(path, headers=upgrade)).status_code == 426
    assert_problem(await served.client.get(path), 426, "upgrade_required")
    # Other paths ignore the upgrade.
    assert (await served.client.get("/health", headers=upgrade)).status_code == 204
    for unknown in ("ws/cats", f"ws/job/{key.id}", f"ws/jobs/{key.id}/"):
        url = f"ws://127.0.0.1:{served.client.base_url.port}/api/v1/{unknown}"
        with pytest.raises(InvalidStatus) as refused:
            async with connect(url):
                pass
        response = refused.value.response
        assert (response.status_code, json.loads(response.body)["code"]) == (404, "unknown_path")
    assert json.loads(response.body)["detail"].endswith(f"/api/v1/ws/jobs/{key.id}?")


async def test_invalid_frames_close_the_connection_without_an_error_log(
    served: Api, caplog: pytest.LogCaptureFixture
) -> None:
    key = await running_job(backend_of(served))
    head = (
        f"GET /api/v1/ws/jobs/{key.id} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    for early in (b"", b"\xff" * 100):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.client.base_url.port)
        writer.write(head)
        await asyncio.sleep(0)  # a separate packet, before the handshake is complete
        writer.write(early)
        async with asyncio.timeout(TIMEOUT):
            # A reset, with unread bytes of this test, may discard the response.
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"\xff" * 100)
                await reader.read()
        writer.close()
        await eventually(lambda: released(served))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_sockets_count_as_streams_and_as_connections(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.http.server.OTHER_CONNECTIONS", 3)
    settings = api_settings(tmp_path, colour_bundle, max_streams=2)
    async with serve_api(settings) as (api, _), AsyncExitStack() as stack:
        key = await running_job(backend_of(api))
        for _ in range(2):
            ws = await stack.enter_async_context(connect(socket_of(api, key.id)))
            await ws.recv()
        seen = samples((await api.client.get("/metrics")).text)
        assert seen[series("glimpse_live_streams", transport="websocket")] == 2
        code, reason, _ = await closing_code(socket_of(api, key.id))
        assert (code, reason) == (4503, "overloaded")
        assert (await api.client.get(stream_of(key))).status_code == 503
        idle = [await asyncio.open_connection("127.0.0.1", api.client.base_url.port) for _ in "abc"]
        with pytest.raises(InvalidStatus) as refused:
            async with connect(socket_of(api, key.id)):
                pass
        assert refused.value.response.status_code == 503
        for _, writer in idle:
            writer.close()


async def test_disconnected_socket_leaves_nothing_behind(served: Api) -> None:
    key = await running_job(backend_of(served))
    async with connect(socket_of(served, key.id)) as ws:
        await ws.recv()
        assert len(served.services.streams) == 1
    await eventually(lambda: released(served))
    async with connect(socket_of(served, key.id)) as ws:
        await ws.recv()
        ws.transport.abort()
        await eventually(lambda: released(served))


async def test_socket_closes_when_its_job_is_deleted(served: Api) -> None:
    key = await running_job(backend_of(served))
    async with connect(socket_of(served, key.id)) as ws:
        await ws.recv()
        assert await backend_of(served).jobs.delete(key)
        (end,) = await messages(ws)
        assert (end["event"], end["data"]["code"], ws.close_code) == ("failed", "not_found", 4404)


async def test_socket_closes_when_its_key_is_revoked(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.1)
    settings = api_settings(tmp_path, colour_bundle, api_keys="required")
    async with serve_api(settings) as (api, _):
        api.authenticator.trusted_seconds = 0.3
        ada = await api.issue("ada", Scope.JOBS)
        key = await running_job(backend_of(api), tenant="ada", owner=ada.key.id)
        async with connect(socket_of(api, key.id), additional_headers=bearer(ada)) as ws:
            await ws.recv()
            assert await api.authenticator.access.keys.change(ada.key.id, revoke())
            (end,) = await messages(ws)
            assert (end["data"]["code"], ws.close_code) == ("unauthenticated", 4401)


async def test_socket_closes_after_the_longest_duration_of_a_stream(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.main.STREAM_SECONDS", 0.4)
    async with serve_api(api_settings(tmp_path, colour_bundle)) as (api, _):
        key = await running_job(backend_of(api))
        code, _, said = await closing_code(socket_of(api, key.id))
        assert (code, [message["event"] for message in said]) == (1012, ["update"])


def mute_socket(api: Api, key: JobKey) -> socket.socket:
    """A client that completes the handshake and then does not read."""
    mute = socket.create_connection(("127.0.0.1", api.client.base_url.port or 0))
    mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    mute.sendall(
        f"GET /api/v1/ws/jobs/{key.id} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    return mute


class PingCounter(ClientConnection):
    """Counts the pings of the server, which the library answers."""

    pings = 0

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            self.pings += 1
        super().process_event(event)


async def flood(api: Api, key: JobKey) -> None:
    """End the job with an event of several megabytes."""
    long = RecordError("long", "x" * 8_000_000, retryable=False)
    assert await backend_of(api).jobs.change(key, jobs.fail(long))


async def test_client_that_does_not_answer_pings_is_dropped(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.http.server.PING_SECONDS", 0.25)
    monkeypatch.setattr("app.http.server.PONG_SECONDS", 1.0)
    async with serve_api(api_settings(tmp_path, colour_bundle)) as (api, _):
        key = await running_job(backend_of(api))
        with mute_socket(api, key):
            await eventually(lambda: opened(api, 1))
            await eventually(lambda: released(api))
        async with connect(socket_of(api, key.id), create_connection=PingCounter) as ws:
            assert isinstance(ws, PingCounter)
            await ws.recv()
            await until(lambda: ws.pings >= 6)  # it answers them, for longer than one may take
            assert len(api.services.streams) == 1


async def test_client_that_does_not_read_is_dropped(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send_timeout, "SEND_SECONDS", 1.0)
    settings = api_settings(tmp_path, colour_bundle)
    async with stoppable(settings) as (server, api):
        key = await running_job(backend_of(api))
        with mute_socket(api, key):
            await eventually(lambda: opened(api, 1))
            await flood(api, key)
            await eventually(lambda: released(api))
            await eventually(lambda: connected(server, 0))


async def test_shutdown_closes_sockets_without_waiting_for_their_clients(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send_timeout, "SEND_SECONDS", 3600.0)
    settings = api_settings(tmp_path, colour_bundle)
    async with AsyncExitStack() as stack:
        server, api = await stack.enter_async_context(stoppable(settings))
        key, other = await running_job(backend_of(api)), await running_job(backend_of(api))
        sockets = [
            await stack.enter_async_context(connect(socket_of(api, key.id))) for _ in range(10)
        ]
        for ws in sockets:
            await ws.recv()
        stack.enter_context(mute_socket(api, other))
        await eventually(lambda: opened(api, 11))
        await flood(api, other)
        await eventually(lambda: sending(server))
        server.should_exit = True
        for ws in sockets:
            with pytest.raises(ConnectionClosed):
                async with asyncio.timeout(TIMEOUT):
                    await ws.recv()
            assert ws.close_code == 1012
        async with asyncio.timeout(TIMEOUT):
            await eventually(lambda: connected(server, 0))


# --- Declaration, metrics and logs ----------------------------------------------------------------


async def test_every_socket_declares_its_scope(served: Api) -> None:
    assert sockets_of(served.app) == [("/api/v1/ws/jobs/{job_id}", Scope.JOBS)]

    async def anybody(websocket: Any) -> None: ...

    with pytest.raises(RuntimeError, match="/api/v1/ws/open"):
        check_every_route([WebSocketRoute("/api/v1/ws/open", anybody)])


async def test_socket_is_counted_and_logged_by_its_route_template(
    served: Api, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    key = await running_job(backend_of(served), 1)
    await complete_item(backend_of(served), key, 0)
    await closing_code(socket_of(served, key.id, "?last_event_id=secret"))
    await eventually(lambda: released(served))
    seen = samples((await served.client.get("/metrics")).text)
    labels = {"method": "GET", "route": "/api/v1/ws/jobs/{job_id}", "status": 101}
    assert seen[series("glimpse_http_requests_total", **labels)] == 1
    printed = capsys.readouterr().out
    assert "websocket" in printed
    assert "secret" not in printed + caplog.text
