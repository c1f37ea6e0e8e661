"""The limits of connections and heads, and requests that are not plain HTTP/1.1."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.http.server import HEAD_SECONDS, KEEP_ALIVE_MARGIN
from tests.support.api import NOTHING, api_settings, serve_api
from tests.support.clock import LoopClock, turns
from tests.support.connections import (
    TIMEOUT,
    Connection,
    Served,
    eventually_in_flight,
    serving,
)
from tests.support.jobs import complete_item, running_job
from tests.support.pictures import picture, sha256


@pytest.fixture
async def served(tmp_path: Path, colour_bundle: Path) -> AsyncIterator[Served]:
    async with serve_api(api_settings(tmp_path, colour_bundle)) as (api, port):
        yield Served(api, port)


async def test_slow_headers_are_refused(served: Served, loop_clock: LoopClock) -> None:
    async with served.connect() as silent, served.connect() as slow:
        await slow.send(b"POST /what/fast HTTP/1.1\r\nHost:")
        await turns()
        await loop_clock.move(HEAD_SECONDS)
        response = await slow.response()
        assert (response.status, response.code) == (408, "headers_too_slow")
        assert await slow.closed()
        assert await silent.closed()
        # The second request of a connection has no more time.
        async with served.connect() as again:
            await again.head(content_length=4, content_type="image/png")
            await again.send(b"text")
            assert (await again.response()).status == 415
            await again.send(b"GET /health")
            await turns()
            await loop_clock.move(HEAD_SECONDS)
            assert (await again.response()).status == 408


@pytest.mark.parametrize("where", ["headers", "one header", "trailers", "one trailer"])
async def test_endless_headers_are_refused(served: Served, where: str) -> None:
    async with served.connect() as client:
        if where.endswith(("headers", "header")):
            await client.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        else:
            await client.head(transfer_encoding="chunked")
            await client.send(b"1\r\nx\r\n0\r\n")
        if where.startswith("one"):
            await client.send(b"a: ")
        piece = b"a" * 1000 if where.startswith("one") else b"a: b\r\n" * 200
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                await client.send(piece)
                await asyncio.sleep(0)
        received = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(TIMEOUT):
                received = await client.reader.read()
        # A reset may discard the response of a client that still sends.
        assert not received or b" 431 " in received.partition(b"\r\n")[0]
    assert (await served.api.client.get("/health")).status_code == 204


async def test_large_head_within_the_limit_is_accepted(served: Served) -> None:
    async with served.connect() as client:
        await client.head(content_length=4, content_type="image/png", x_large="a" * 60_000)
        await client.send(b"text")
        assert (await client.response()).status == 415


H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
POST = f"POST /api/v1/images HTTP/1.1\r\nHost: localhost\r\n{H2C}"
# As in a request that the parser would take for the next one, were it not the end of a body.
NEXT = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nxyz"


@pytest.mark.parametrize("pieces", [1, 2, 40])
@pytest.mark.parametrize("chunked", [False, True])
async def test_offer_of_http2_is_ignored_and_the_body_is_read(
    served: Served, chunked: bool, pieces: int
) -> None:
    """Java's HttpClient and `curl --http2` send such requests. The connection closes afterwards."""
    image = picture()
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(image), image) if chunked else image
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(image)}"
    request = f"{POST}{length}\r\n\r\n".encode() + body + NEXT
    async with served.connect() as client:
        size = -(-len(request) // pieces)
        with contextlib.suppress(ConnectionError):  # it may close before the last piece
            for begin in range(0, len(request), size):
                await client.send(request[begin : begin + size])
                await turns(3)  # so that the server reads the piece by itself
        response = await client.response()
        assert (response.status, response.headers["connection"]) == (202, "close")
        assert json.loads(response.body)["image_hash"] == sha256(image)
        assert await client.closed()
    assert served.api.traces().records == 1


async def test_offer_of_http2_without_a_body_keeps_the_connection(served: Served) -> None:
    ready = f"GET /ready HTTP/1.1\r\nHost: localhost\r\n{H2C}\r\n".encode()
    async with served.connect() as client:
        await client.send(ready + ready)
        for _ in range(2):
            response = await client.response()
            assert (response.status, "connection" in response.headers) == (200, False)
        await client.send(ready)
        assert (await client.response()).status == 200


async def test_request_inside_the_body_of_an_offer_is_not_answered(served: Served) -> None:
    async with served.connect() as client:
        await client.send(f"{POST}Content-Length: {len(NEXT)}\r\n\r\n".encode())
        await turns()
        await client.send(NEXT)
        assert (await client.response()).status == 415
        assert await client.closed()


@pytest.mark.parametrize("target", ["*", "/ready", "http://api/ready"])
async def test_tunnel_is_refused_and_the_connection_closes(served: Served, target: str) -> None:
    """The parser takes every CONNECT for an offer of another protocol."""
    async with served.connect() as client:
        await client.send(f"CONNECT {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        response = await client.response()
        assert 400 <= response.status < 500
        assert response.headers["connection"] == "close"
        assert await client.closed()


@pytest.mark.parametrize(
    ("more", "then"),
    [("", b"\r\n"), ("Content-Length: 9\r\n", b"x"), ("Transfer-Encoding: chunked\r\n", b"9\r\nx")],
)
async def test_a_byte_after_a_response_does_not_extend_the_time(
    served: Served, loop_clock: LoopClock, more: str, then: bytes
) -> None:
    async with served.connect() as client:
        await client.send(f"GET /ready HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode())
        assert (await client.response()).status == 200
        await client.send(then)
        await turns()
        await loop_clock.move(HEAD_SECONDS)
        async with asyncio.timeout(TIMEOUT):
            rest = await client.reader.read()
        assert rest == b"" or b" 408 " in rest.partition(b"\r\n")[0]


@pytest.mark.parametrize("path", ["/api/v1/images", "/what/fast", "/api/v1/jobs/batch-predict"])
async def test_length_of_thousands_of_digits_is_a_number(served: Served, path: str) -> None:
    async with served.connect() as client:
        await client.head(path, content_type="image/png", content_length="0" * 5000 + "4")
        await client.send(b"text")
        assert (await client.response()).status in (415, 422)
    async with served.connect() as client:
        await client.head(path, content_type="image/png", content_length="9" * 19)
        assert (await client.response()).status in (400, 413, 415, 422)


async def test_garbage_after_a_request_does_not_replace_its_response(served: Served) -> None:
    image = picture()
    async with served.connect() as client:
        head = "POST /api/v1/images HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Length: {len(image)}\r\n\r\n"
        await client.send(head.encode() + image + b"\x01\r\n\r\n")
        response = await client.response()
        assert response.status == 202
        assert await client.closed()
    assert served.api.traces().records == 1


async def test_malformed_request_gets_a_problem(served: Served) -> None:
    async with served.connect() as client:
        await client.send(b"\x16\x03\x01 hello\r\n\r\n")
        response = await client.response()
        assert (response.status, response.code) == (400, "malformed_request")
        assert await client.closed()


async def test_surplus_connection_is_refused_but_health_is_served(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.http.server.OTHER_CONNECTIONS", 1)
    async with contextlib.AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving(tmp_path, colour_bundle, max_streams=2))
        for _ in range(3):
            client = await stack.enter_async_context(served.connect())
            await client.head(content_length=4, content_type="image/png")
        await eventually_in_flight(served, 3)
        image = picture()
        surplus = await stack.enter_async_context(served.connect())
        await surplus.head(content_length=len(image))
        await surplus.send(image)
        response = await surplus.response()
        assert (response.status, response.code) == (503, "overloaded")
        assert "retry-after" in response.headers
        assert response.headers["connection"] == "close"
        probe = await stack.enter_async_context(served.connect())
        await probe.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await probe.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        assert served.api.traces() == NOTHING


async def test_connections_beyond_twice_the_limit_are_dropped(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal costs memory too, so the number of refused connections is limited."""
    monkeypatch.setattr("app.http.server.OTHER_CONNECTIONS", 1)
    async with contextlib.AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving(tmp_path, colour_bundle, max_streams=1))
        clients = [await stack.enter_async_context(served.connect()) for _ in range(4)]
        for client in clients:
            await client.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health")
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 204")
        dropped = await stack.enter_async_context(served.connect())
        with contextlib.suppress(ConnectionError):
            await dropped.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await dropped.closed()


# --- Idle connections -----------------------------------------------------------------------------

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def head_of(client: Connection) -> str:
    async with asyncio.timeout(TIMEOUT):
        return (await client.reader.readuntil(b"\r\n\r\n")).decode()


async def test_idle_connection_stays_open_longer_than_a_head_may_take(
    served: Served, loop_clock: LoopClock
) -> None:
    async with served.connect() as client:
        for _ in range(2):
            await client.send(HEALTH)
            assert "\r\nkeep-alive: timeout=65\r\n" in await head_of(client)
            await loop_clock.move(HEAD_SECONDS + 5)


async def test_idle_connection_closes_after_its_time(
    tmp_path: Path, colour_bundle: Path, loop_clock: LoopClock
) -> None:
    async with (
        serving(tmp_path, colour_bundle, keep_alive_seconds=100) as served,
        served.connect() as client,
    ):
        await client.send(HEALTH)
        assert "\r\nkeep-alive: timeout=100\r\n" in await head_of(client)
        await loop_clock.move(100)
        assert not client.reader.at_eof()  # the server closes it later than announced
        await loop_clock.move(KEEP_ALIVE_MARGIN)
        assert await client.closed()


async def test_closing_response_announces_no_keep_alive(served: Served) -> None:
    for request in (HEALTH.replace(b"1.1", b"1.0"), HEALTH[:-2] + b"Connection: close\r\n\r\n"):
        async with served.connect() as client:
            await client.send(request)
            head = await head_of(client)
            assert "connection: close" in head
            assert "keep-alive" not in head


async def test_idle_connection_makes_room_for_a_new_one(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is idle for the longest time closes. Requests that run are not disturbed."""
    monkeypatch.setattr("app.http.server.OTHER_CONNECTIONS", 1)
    async with contextlib.AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving(tmp_path, colour_bundle, max_streams=2))
        busy = await stack.enter_async_context(served.connect())
        await busy.head(content_length=4, content_type="image/png")
        await eventually_in_flight(served, 1)
        idle = [await stack.enter_async_context(served.connect()) for _ in range(2)]
        for client in idle:
            await client.send(HEALTH)
            await head_of(client)
        fresh = await stack.enter_async_context(served.connect())
        await fresh.send(b"GET /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert "200 OK" in await head_of(fresh)
        assert await idle[0].closed()
        await idle[1].send(HEALTH)
        assert "204" in await head_of(idle[1])
        await busy.send(b"text")
        assert (await busy.response()).status == 415


# --- HTTP/1.0 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["text/csv", "application/x-ndjson", "text/event-stream"])
async def test_http_1_0_client_gets_no_chunks(served: Served, accept: str) -> None:
    job = await running_job(served.api.services.backend, 1)
    await complete_item(served.api.services.backend, job, 0)
    path = "stream" if "event" in accept else "results"
    async with served.connect() as client:
        url = f"/api/v1/jobs/{job.id}/{path}"
        request = f"GET {url} HTTP/1.0\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"
        await client.send(request.encode())
        head = await head_of(client)
        assert "connection: close" in head
        assert "transfer-encoding" not in head
        async with asyncio.timeout(TIMEOUT):
            body = await client.reader.read()
    start = {"text/csv": b"index,", "application/x-ndjson": b'{"index"', "text/event-stream": b"re"}
    assert body.startswith(start[accept])
    assert body.endswith(b"\n")


async def test_http_1_0_client_gets_the_length_that_is_known(served: Served) -> None:
    async with served.connect() as client:
        await client.send(b"GET /ready HTTP/1.0\r\nHost: localhost\r\n\r\n")
        response = await client.response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert await client.closed()
