"""Uploads over a real connection: refused early, cut off, or lying about their length."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from app.http.middleware import unread_body
from tests.support.api import NOTHING, Api, Traces, api_settings, eventually, serve_api
from tests.support.pictures import picture, sha256

LIMIT = 10 * 2**20
PATIENCE = 30.0  # seconds for an answer, on a busy machine
ELEVEN_MIB = 11 * 2**20
FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="img"; filename="a.jpg"\r\n\r\n'


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        assert self.headers["content-type"] == "application/problem+json"
        return str(json.loads(self.body)["code"])


class Connection:
    """A client that does as it pleases."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, path: str = "/api/v1/images", **headers: str | int) -> None:
        lines = [f"POST {path} HTTP/1.1", "Host: api"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def answer(self) -> Answer:
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(head[0].split()[1]), headers, body)

    async def closed(self) -> bool:
        """Whether the server closes the connection, without another byte."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self.reader.read() == b""
        except ConnectionResetError:
            return True


@dataclass
class Served:
    api: Api
    port: int

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()


@pytest.fixture
async def served(tmp_path: Path, colour_bundle: Path) -> AsyncIterator[Served]:
    async with serve_api(api_settings(tmp_path, colour_bundle)) as (api, port):
        yield Served(api, port)


@pytest.mark.parametrize(("path", "type_"), [("/what/fast", FORM), ("/api/v1/images", "image/png")])
async def test_an_announced_excess_is_refused_before_a_byte_of_it(
    served: Served, path: str, type_: str
) -> None:
    async with served.connect() as client:
        await client.head(path, content_type=type_, content_length=ELEVEN_MIB)
        answer = await client.answer()
        assert answer.status == 413
        assert answer.code == "image_too_large"
        assert answer.headers["connection"] == "close"
        assert await client.closed()
    assert served.api.traces() == NOTHING


async def test_a_client_that_expects_100_continue_is_spared_the_upload(served: Served) -> None:
    async with served.connect() as client:
        await client.head(content_length=ELEVEN_MIB, expect="100-continue")
        assert (await client.answer()).status == 413
    async with served.connect() as client:
        image = picture()
        await client.head(content_length=len(image), expect="100-continue")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(image)
        assert (await client.answer()).status == 202


@pytest.mark.parametrize(("path", "type_"), [("/what/fast", FORM), ("/api/v1/images", "image/png")])
async def test_an_unannounced_excess_is_refused_while_it_comes(
    served: Served, path: str, type_: str
) -> None:
    """Chunked, without end: the answer does not wait for one."""
    async with served.connect() as client:
        await client.head(path, content_type=type_, transfer_encoding="chunked")
        if type_ == FORM:
            await client.chunk(PART)
        piece = b"\x89PNG\r\n\x1a\n" + bytes(65528)
        for _ in range(LIMIT // len(piece) + 1):
            await client.chunk(piece)
        answer = await client.answer()
        assert answer.status == 413
        assert answer.headers["connection"] == "close"
        assert await client.closed()
    assert served.api.traces() == NOTHING


async def test_a_client_in_mid_sentence_still_gets_its_answer(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing at once would reset the connection under the client's feet."""
    monkeypatch.setattr(unread_body, "LINGER_SECONDS", PATIENCE)  # for as long as it speaks
    async with served.connect() as client:
        await client.head(content_length=ELEVEN_MIB, content_type="image/png")
        await client.send(bytes(ELEVEN_MIB))
        assert (await client.answer()).status == 413


async def test_a_refusal_that_has_read_everything_keeps_the_connection(served: Served) -> None:
    async with served.connect() as client:
        for _ in range(2):
            await client.head(content_length=4, content_type="image/png")
            await client.send(b"text")
            answer = await client.answer()
            assert answer.status == 415
            assert "connection" not in answer.headers


async def test_chunked_images_are_taken(served: Served) -> None:
    image = picture(size=(320, 200))
    async with served.connect() as client:
        await client.head(transfer_encoding="chunked")
        for begin in range(0, len(image), 1000):
            await client.chunk(image[begin : begin + 1000])
        await client.send(b"0\r\n\r\n")
        answer = await client.answer()
        assert answer.status == 202
        assert json.loads(answer.body)["image_hash"] == sha256(image)


@pytest.mark.parametrize("type_", [FORM, "image/jpeg"])
async def test_a_client_that_hangs_up_leaves_no_trace(
    served: Served, type_: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with served.connect() as client:
        await client.head(content_type=type_, content_length=50_000)
        await client.send(PART + picture()[:20_000])
        await asyncio.sleep(0.05)
    output = ""

    async def logged() -> bool:
        nonlocal output
        output += "".join(capfd.readouterr())
        return "499" in output

    await eventually(logged)
    assert "Traceback" not in output
    assert served.api.traces() == NOTHING
    assert (await served.api.client.get("/health")).status_code == 204


async def test_200_simultaneous_posts_over_connections_are_one(served: Served) -> None:
    """P2, through the server: bodies arrive at different times, and still there is one message."""
    image = picture(size=(400, 300))

    async def post() -> int:
        async with served.connect() as client:
            await client.head(content_length=len(image))
            await client.send(image)
            return (await client.answer()).status

    statuses = await asyncio.gather(*(post() for _ in range(200)))
    assert set(statuses) == {202}
    assert served.api.traces() == Traces(records=1, blobs=1, messages=1)


# --- More than there is room for, and slower than there is time for. ------------------------------


@asynccontextmanager
async def serving(tmp_path: Path, bundle: Path, **settings: object) -> AsyncIterator[Served]:
    async with serve_api(api_settings(tmp_path, bundle, **settings)) as (api, port):
        yield Served(api, port)


def limit_uploads(served: Served, **limits: float) -> None:
    uploads = served.api.services.uploads
    uploads.limits = replace(uploads.limits, **limits)  # type: ignore[arg-type]


@pytest.mark.parametrize(("path", "type_"), [("/what/fast", FORM), ("/api/v1/images", "image/png")])
async def test_one_upload_too_many_is_refused_before_it_is_read(
    tmp_path: Path, colour_bundle: Path, path: str, type_: str
) -> None:
    async with (
        serving(tmp_path, colour_bundle) as served,
        served.connect() as slow,
        served.connect() as fast,
    ):
        limit_uploads(served, max_uploads=1)
        await slow.head(path, content_type=type_, content_length=1000)
        await slow.send(PART)
        await eventually_in_flight(served, 1)
        await fast.head(path, content_type=type_, content_length=LIMIT)
        answer = await fast.answer()
        assert (answer.status, answer.code) == (503, "overloaded")
        assert 1 <= int(answer.headers["retry-after"]) <= 5
        assert answer.headers["connection"] == "close"
        slow.writer.close()
        await eventually_in_flight(served, 0)
        async with served.connect() as later:
            image = picture()
            await later.head(content_length=len(image))
            await later.send(image)
            assert (await later.answer()).status == 202


async def test_bytes_are_refused_when_there_is_no_room_for_them(
    tmp_path: Path, colour_bundle: Path
) -> None:
    limits = {"max_image_bytes": 100_000, "max_upload_bytes_in_flight": 200_000}
    async with (
        serving(tmp_path, colour_bundle, **limits) as served,
        served.connect() as first,
        served.connect() as second,
        served.connect() as third,
    ):
        for client in (first, second):
            await client.head(content_length=100_000)
            await client.send(bytes(90_000))
        uploads = served.api.services.uploads

        async def held() -> bool:
            return uploads.bytes_reserved == 180_000

        await eventually(held)
        # Announced, and not announced.
        await third.head(content_length=20_001)
        assert (await third.answer()).code == "overloaded"
        async with served.connect() as fourth:
            await fourth.head(transfer_encoding="chunked")
            await fourth.chunk(bytes(20_001))
            assert (await fourth.answer()).code == "overloaded"
        # Those that were let in go on.
        await first.send(bytes(10_000))
        assert (await first.answer()).status == 415
        await second.send(bytes(10_000))
        assert (await second.answer()).status == 415
        assert (uploads.bytes_reserved, uploads.in_flight) == (0, 0)


async def test_who_waits_for_a_result_holds_no_bytes(tmp_path: Path, colour_bundle: Path) -> None:
    async with serving(tmp_path, colour_bundle) as served, served.connect() as waiting:
        limit_uploads(served, max_uploads=1)
        image = picture()
        await waiting.head(content_length=len(image), prefer="wait=30")
        await waiting.send(image)

        async def polls() -> bool:
            return served.api.services.images.waiter.polls == 1

        await eventually(polls)
        assert served.api.services.uploads.in_flight == 0
        await served.api.succeed(sha256(image))
        assert (await waiting.answer()).status == 200


@pytest.mark.parametrize(("path", "type_"), [("/what/fast", FORM), ("/api/v1/images", "image/png")])
async def test_a_body_that_does_not_come_is_given_up(
    tmp_path: Path, colour_bundle: Path, path: str, type_: str
) -> None:
    async with serving(tmp_path, colour_bundle) as served, served.connect() as client:
        limit_uploads(served, grace_seconds=0.2)
        await client.head(path, content_type=type_, content_length=1000)
        answer = await client.answer()
        assert (answer.status, answer.code) == (408, "upload_too_slow")
        assert answer.headers["connection"] == "close"
        assert await client.closed()


async def test_headers_that_do_not_come_are_given_up(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.http.server.HEAD_SECONDS", 2)
    async with (
        serving(tmp_path, colour_bundle) as served,
        served.connect() as silent,
        served.connect() as slow,
    ):
        await slow.send(b"POST /what/fast HTTP/1.1\r\nHost:")
        answer = await slow.answer()
        assert (answer.status, answer.code) == (408, "headers_too_slow")
        assert await slow.closed()
        assert await silent.closed()
        # A second request on a connection that was used has no more time.
        async with served.connect() as again:
            await again.head(content_length=4, content_type="image/png")
            await again.send(b"text")
            assert (await again.answer()).status == 415
            await again.send(b"GET /health")
            assert (await again.answer()).status == 408


@pytest.mark.parametrize("where", ["headers", "one header", "trailers", "one trailer"])
async def test_endless_headers_are_cut(served: Served, where: str) -> None:
    async with served.connect() as client:
        if where.endswith(("headers", "header")):
            await client.send(b"GET /health HTTP/1.1\r\nHost: api\r\n")
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
            async with asyncio.timeout(PATIENCE):
                received = await client.reader.read()
        # The reset of a connection that was cut in mid-sentence may destroy the answer.
        assert not received or b" 431 " in received.partition(b"\r\n")[0]
    assert (await served.api.client.get("/health")).status_code == 204


async def test_a_large_head_in_one_piece_is_refused(served: Served) -> None:
    async with served.connect() as client:
        await client.head(content_length=4, content_type="image/png", x_large="a" * 60_000)
        await client.send(b"text")
        assert (await client.answer()).status == 415
        await client.head(content_length=4, content_type="image/png", x_large="a" * 70_000)
        answer = await client.answer()
        assert (answer.status, answer.code) == (431, "head_too_large")
        assert await client.closed()


H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
POST = f"POST /api/v1/images HTTP/1.1\r\nHost: api\r\n{H2C}"


@pytest.mark.parametrize("pieces", [1, 2, 40])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_offer_of_http2_is_left_and_the_body_read(
    served: Served, chunked: bool, pieces: int
) -> None:
    """As Java's HttpClient and `curl --http2` make it."""
    image = picture()
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(image), image) if chunked else image
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(image)}"
    request = f"{POST}{length}\r\n\r\n".encode() + body
    request += f"GET /api/v1/images/{sha256(image)} HTTP/1.1\r\nHost: api\r\n{H2C}\r\n".encode()
    async with served.connect() as client:
        size = -(-len(request) // pieces)
        for begin in range(0, len(request), size):
            await client.send(request[begin : begin + size])
            await asyncio.sleep(0.001)
        assert (await client.answer()).status == 202
        assert (await client.answer()).status == 202
    assert served.api.traces().records == 1


async def test_a_request_inside_the_body_of_an_offer_is_not_answered(served: Served) -> None:
    inner = b"GET /openapi.json HTTP/1.1\r\nHost: api\r\n\r\n"
    async with served.connect() as client:
        await client.send(f"{POST}Content-Length: {len(inner)}\r\n\r\n".encode())
        await asyncio.sleep(0.05)
        await client.send(inner)
        assert (await client.answer()).status == 415
        await client.send(b"GET /ready HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n")
        assert (await client.answer()).status == 200
        assert await client.closed()


@pytest.mark.parametrize("target", ["*", "/ready", "http://api/ready"])
async def test_a_tunnel_is_refused_once(served: Served, target: str) -> None:
    """The parser takes CONNECT for an offer of another protocol, whatever it says."""
    async with served.connect() as client:
        await client.send(f"CONNECT {target} HTTP/1.1\r\nHost: api\r\n\r\n".encode())
        answer = await client.answer()
        assert 400 <= answer.status < 500
        assert answer.headers["connection"] == "close"
        assert await client.closed()


@pytest.mark.parametrize(
    ("more", "then"),
    [("", b"\r\n"), ("Content-Length: 9\r\n", b"x"), ("Transfer-Encoding: chunked\r\n", b"9\r\nx")],
)
async def test_a_byte_after_an_answer_buys_no_time(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch, more: str, then: bytes
) -> None:
    monkeypatch.setattr("app.http.server.HEAD_SECONDS", 1)
    async with serving(tmp_path, colour_bundle) as served, served.connect() as client:
        await client.send(f"GET /ready HTTP/1.1\r\nHost: api\r\n{more}\r\n".encode())
        assert (await client.answer()).status == 200
        await client.send(then)
        async with asyncio.timeout(PATIENCE):
            rest = await client.reader.read()
        assert rest == b"" or b" 408 " in rest.partition(b"\r\n")[0]


@pytest.mark.parametrize("path", ["/api/v1/images", "/what/fast", "/api/v1/jobs/batch-predict"])
async def test_a_length_of_thousands_of_digits_is_a_number(served: Served, path: str) -> None:
    async with served.connect() as client:
        await client.head(path, content_type="image/png", content_length="0" * 5000 + "4")
        await client.send(b"text")
        assert (await client.answer()).status in (415, 422)
    async with served.connect() as client:
        await client.head(path, content_type="image/png", content_length="9" * 19)
        assert (await client.answer()).status in (400, 413, 415, 422)


async def test_garbage_behind_a_request_does_not_take_its_answers_place(served: Served) -> None:
    image = picture()
    async with served.connect() as client:
        head = f"POST /api/v1/images HTTP/1.1\r\nHost: api\r\nContent-Length: {len(image)}\r\n\r\n"
        await client.send(head.encode() + image + b"\x01\r\n\r\n")
        answer = await client.answer()
        assert answer.status == 202
        assert await client.closed()
    assert served.api.traces().records == 1


async def test_what_is_no_http_is_a_problem_as_well(served: Served) -> None:
    async with served.connect() as client:
        await client.send(b"\x16\x03\x01 hello\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.code) == (400, "malformed_request")
        assert await client.closed()


async def test_a_connection_too_many_is_told_so_and_health_is_not(
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
        answer = await surplus.answer()
        assert (answer.status, answer.code) == (503, "overloaded")
        assert "retry-after" in answer.headers
        assert answer.headers["connection"] == "close"
        probe = await stack.enter_async_context(served.connect())
        await probe.send(b"GET /health HTTP/1.1\r\nHost: api\r\n\r\n")
        assert (await probe.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        assert served.api.traces() == NOTHING


async def eventually_in_flight(served: Served, uploads: int) -> None:
    async def reached() -> bool:
        return served.api.services.uploads.in_flight == uploads

    await eventually(reached)
