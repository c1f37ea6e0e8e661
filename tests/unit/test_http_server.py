"""The API behind its server: uploads over raw connections, and the limit of open files."""

import asyncio
import json
import resource
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.http.middleware import unread_body
from app.http.server import OTHER_FILES, raise_file_limit
from tests.support.api import NOTHING, Traces, eventually
from tests.support.clock import LoopClock, turns
from tests.support.connections import TIMEOUT, Served, eventually_in_flight, serving
from tests.support.pictures import picture, sha256

LIMIT = 10 * 2**20
ELEVEN_MIB = 11 * 2**20
FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="img"; filename="a.jpg"\r\n\r\n'


@pytest.fixture
async def served(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Served]:
    monkeypatch.setattr(unread_body, "LINGER_PAUSE_SECONDS", 0.5)
    async with serving(tmp_path, colour_bundle, max_image_bytes=LIMIT) as served:
        yield served


@pytest.mark.parametrize(("path", "type_"), [("/what/fast", FORM), ("/api/v1/images", "image/png")])
async def test_announced_excess_is_refused_before_the_body_is_read(
    served: Served, path: str, type_: str
) -> None:
    async with served.connect() as client:
        await client.head(path, content_type=type_, content_length=ELEVEN_MIB)
        response = await client.response()
        assert response.status == 413
        assert response.code == "image_too_large"
        assert response.headers["connection"] == "close"
        assert await client.closed()
    assert served.api.traces() == NOTHING


async def test_refused_upload_with_100_continue_sends_no_body(served: Served) -> None:
    async with served.connect() as client:
        await client.head(content_length=ELEVEN_MIB, expect="100-continue")
        assert (await client.response()).status == 413
    async with served.connect() as client:
        image = picture()
        await client.head(content_length=len(image), expect="100-continue")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(image)
        assert (await client.response()).status == 202


@pytest.mark.parametrize(("path", "type_"), [("/what/fast", FORM), ("/api/v1/images", "image/png")])
async def test_unannounced_excess_is_refused_while_it_arrives(
    served: Served, path: str, type_: str
) -> None:
    """The body is chunked and never ends."""
    async with served.connect() as client:
        await client.head(path, content_type=type_, transfer_encoding="chunked")
        if type_ == FORM:
            await client.chunk(PART)
        piece = b"\x89PNG\r\n\x1a\n" + bytes(65528)
        for _ in range(LIMIT // len(piece) + 1):
            await client.chunk(piece)
        response = await client.response()
        assert response.status == 413
        assert response.headers["connection"] == "close"
        assert await client.closed()
    assert served.api.traces() == NOTHING


async def test_client_that_still_sends_gets_its_response(
    served: Served, loop_clock: LoopClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing at once would reset the connection, and could discard the response."""
    monkeypatch.setattr(unread_body, "LINGER_PAUSE_SECONDS", TIMEOUT)
    async with served.connect() as client:
        await client.head(content_length=ELEVEN_MIB, content_type="image/png")
        for _ in range(11):
            await client.send(bytes(2**20))
            await loop_clock.move(0.13)  # in all longer than the shorter time
        assert (await client.response()).status == 413


async def test_bytes_that_are_discarded_are_limited(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread_body, "LINGER_BYTES", 2**20)
    monkeypatch.setattr(unread_body, "LINGER_SECONDS", TIMEOUT)
    monkeypatch.setattr(unread_body, "LINGER_PAUSE_SECONDS", TIMEOUT)
    async with serving(tmp_path, colour_bundle) as served, served.connect() as client:
        await client.head(content_length=10**9, content_type="image/png")
        assert (await client.response()).status == 413
        with pytest.raises(ConnectionError):
            for _ in range(200):
                await client.send(bytes(2**20))


async def test_refused_client_that_pauses_is_disconnected(
    served: Served, loop_clock: LoopClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread_body, "LINGER_SECONDS", 10 * TIMEOUT)
    async with served.connect() as client:
        await client.head(content_length=ELEVEN_MIB, content_type="image/png")
        assert (await client.response()).status == 413
        await turns()
        await loop_clock.move(unread_body.LINGER_PAUSE_SECONDS)
        assert await client.closed()


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"host": "evil.example"}, 400, "invalid_host"),
        ({"origin": "https://evil.example"}, 403, "cross_origin_request"),
    ],
)
async def test_refused_host_or_origin_closes_the_connection(
    served: Served, headers: dict[str, str], status: int, code: str
) -> None:
    async with served.connect() as client:
        await client.head(content_length=LIMIT, content_type="image/png", **headers)
        response = await client.response()
        assert (response.status, response.code) == (status, code)
        assert response.headers["connection"] == "close"
        assert await client.closed()


async def test_refusal_after_the_whole_body_keeps_the_connection(served: Served) -> None:
    async with served.connect() as client:
        for _ in range(2):
            await client.head(content_length=4, content_type="image/png")
            await client.send(b"text")
            response = await client.response()
            assert response.status == 415
            assert "connection" not in response.headers


async def test_chunked_images_are_accepted(served: Served) -> None:
    image = picture(size=(320, 200))
    async with served.connect() as client:
        await client.head(transfer_encoding="chunked")
        for begin in range(0, len(image), 1000):
            await client.chunk(image[begin : begin + 1000])
        await client.send(b"0\r\n\r\n")
        response = await client.response()
        assert response.status == 202
        assert json.loads(response.body)["image_hash"] == sha256(image)


@pytest.mark.parametrize("type_", [FORM, "image/jpeg"])
async def test_disconnected_client_leaves_no_trace(
    served: Served, type_: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with served.connect() as client:
        await client.head(content_type=type_, content_length=50_000)
        await client.send(PART + picture()[:20_000])
        await eventually_in_flight(served, 1)
    output = ""

    async def logged() -> bool:
        nonlocal output
        output += "".join(capfd.readouterr())
        return "499" in output

    await eventually(logged)
    assert "Traceback" not in output
    assert served.api.traces() == NOTHING
    assert (await served.api.client.get("/health")).status_code == 204


async def test_200_simultaneous_uploads_create_one_record(served: Served) -> None:
    """P2, through the server: the bodies arrive at different times."""
    image = picture(size=(400, 300))

    async def post() -> int:
        async with served.connect() as client:
            await client.head(content_length=len(image))
            await client.send(image)
            return (await client.response()).status

    statuses = await asyncio.gather(*(post() for _ in range(200)))
    assert set(statuses) == {202}
    assert served.api.traces() == Traces(records=1, blobs=1, messages=1)


# --- Capacity and speed ---------------------------------------------------------------------------


def limit_uploads(served: Served, **limits: float) -> None:
    uploads = served.api.services.uploads
    uploads.limits = replace(uploads.limits, **limits)  # type: ignore[arg-type]


@pytest.mark.parametrize(("path", "type_"), [("/what/fast", FORM), ("/api/v1/images", "image/png")])
async def test_surplus_upload_is_refused_before_the_body_is_read(
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
        response = await fast.response()
        assert (response.status, response.code) == (503, "overloaded")
        assert 1 <= int(response.headers["retry-after"]) <= 5
        assert response.headers["connection"] == "close"
        slow.writer.close()
        await eventually_in_flight(served, 0)
        async with served.connect() as later:
            image = picture()
            await later.head(content_length=len(image))
            await later.send(image)
            assert (await later.response()).status == 202


async def test_bytes_beyond_the_memory_limit_are_refused(
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
        assert (await third.response()).code == "overloaded"
        async with served.connect() as fourth:
            await fourth.head(transfer_encoding="chunked")
            await fourth.chunk(bytes(20_001))
            assert (await fourth.response()).code == "overloaded"
        # Accepted uploads continue.
        await first.send(bytes(10_000))
        assert (await first.response()).status == 415
        await second.send(bytes(10_000))
        assert (await second.response()).status == 415
        assert (uploads.bytes_reserved, uploads.in_flight) == (0, 0)


async def test_client_that_waits_for_a_result_holds_no_slot(
    tmp_path: Path, colour_bundle: Path
) -> None:
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
        assert (await waiting.response()).status == 200


@pytest.mark.parametrize(("path", "type_"), [("/what/fast", FORM), ("/api/v1/images", "image/png")])
async def test_missing_body_is_refused(
    tmp_path: Path, colour_bundle: Path, loop_clock: LoopClock, path: str, type_: str
) -> None:
    async with serving(tmp_path, colour_bundle) as served, served.connect() as client:
        limit_uploads(served, grace_seconds=0.2)
        await client.head(path, content_type=type_, content_length=1000)
        response = await client.response()
        assert (response.status, response.code) == (408, "upload_too_slow")
        assert response.headers["connection"] == "close"
        await turns()
        await loop_clock.move(unread_body.LINGER_PAUSE_SECONDS)
        assert await client.closed()


@pytest.fixture
def file_limit() -> Iterator[tuple[int, int]]:
    """A soft limit of 256 open files, and the hard limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        yield 256, before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_limit_of_open_files_is_raised_for_the_connections(file_limit: tuple[int, int]) -> None:
    soft, hard = file_limit
    raise_file_limit(10)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)
    raise_file_limit(100)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (2 * 100 + OTHER_FILES, hard)
    raise_file_limit(50)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (2 * 100 + OTHER_FILES, hard)
