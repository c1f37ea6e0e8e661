"""Images that clients name in JSON: URLs, data URLs and Base64 (P5, P7)."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from app.uploads.image_source import MAX_FETCHES, ImageFetcher
from app.uploads.image_upload import ImageBuffer
from app.uploads.limiter import UploadLimiter, UploadLimits
from core.errors import ImageTooLarge, InvalidRequest, Overloaded
from core.outbound import http_client
from core.outbound.http_client import MAX_REDIRECTS, PrivateAddress, open_public_client
from tests.support.api import Api, api_settings, open_api
from tests.support.pictures import picture, sha256
from tests.support.problems import assert_problem
from tests.support.receivers import listening

IMAGES = "/api/v1/images"
RED = picture(1)
ENCODED = base64.b64encode(RED).decode()
LIMITS = UploadLimits(max_bytes=2**30, min_bytes_per_second=1)


# --- In JSON --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        {"base64": ENCODED},
        {"base64": ENCODED.rstrip("=")},
        {"base64": base64.urlsafe_b64encode(RED).decode()},
        {"base64": "\n".join(ENCODED[at : at + 76] for at in range(0, len(ENCODED), 76))},
        {"base64": f"data:image/jpeg;base64,{ENCODED}"},
        {"url": f"data:image/jpeg;base64,{ENCODED}"},
        {"url": f"DATA:;charset=x;base64,{ENCODED}"},
        {"url": "data:image/jpeg," + "".join(f"%{byte:02x}" for byte in RED)},
    ],
    ids=["base64", "no padding", "url-safe", "lines", "browser", "data url", "no type", "percent"],
)
async def test_image_in_json_is_an_upload(api: Api, document: dict[str, str]) -> None:
    response = await api.client.post(IMAGES, json=document)
    assert response.status_code == 202
    assert response.json()["image_hash"] == sha256(RED)
    assert api.services.uploads.bytes_reserved == 0
    assert await api.services.backend.blobs.get(f"public/{sha256(RED)}") == RED


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({}, "base64"),
        ({"url": "https://example.com/a.jpg", "base64": ENCODED}, "base64"),
        ({"base64": "???"}, "base64"),
        ({"base64": "="}, "base64"),
        ({"url": "data:image/jpeg;base64"}, "url"),
        ({"url": "data:,"}, "url"),
        ({"url": "ftp://example.com/a.jpg"}, "url"),
        ({"url": "file:///etc/passwd"}, "url"),
        ({"url": "https://user:pass@example.com/a.jpg"}, "url"),
        ({"url": "https://example.com/" + "a" * 3000}, "url"),
        ({"image": ENCODED}, "unknown field"),
        ([], ""),
    ],
)
async def test_invalid_document_is_refused(api: Api, document: Any, field: str) -> None:
    problem = assert_problem(await api.client.post(IMAGES, json=document), 422, "invalid_request")
    assert field in str(problem)
    assert api.services.uploads.bytes_reserved == 0


async def test_document_that_is_too_large_is_refused(tmp_path: Path, colour_bundle: Path) -> None:
    limit = 100_000
    async with open_api(api_settings(tmp_path, colour_bundle, max_image_bytes=limit)) as api:
        for size in (limit + 1, 3 * limit):
            document = {"base64": base64.b64encode(bytes(size)).decode()}
            response = await api.client.post(IMAGES, json=document)
            assert_problem(response, 413, "image_too_large")


@pytest.mark.parametrize("path", [IMAGES, f"{IMAGES}/from-url"])
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "169.254.169.254", "localhost", "10.0.0.1"])
async def test_private_address_is_refused(api: Api, path: str, host: str) -> None:
    response = await api.client.post(path, json={"url": f"http://{host}/a.jpg"})
    assert_problem(response, 422, "private_address")
    assert api.services.uploads.bytes_reserved == 0


async def test_route_for_urls_takes_json_alone(api: Api) -> None:
    response = await api.client.post(f"{IMAGES}/from-url", content=RED)
    assert_problem(response, 415, "unsupported_media_type")


async def test_operator_can_forbid_urls(tmp_path: Path, colour_bundle: Path) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle, image_urls=False)) as api:
        response = await api.client.post(IMAGES, json={"url": "https://example.com/a.jpg"})
        problem = assert_problem(response, 422, "invalid_request")
        assert "fetches no URLs" in problem["detail"]
        response = await api.client.post(IMAGES, json={"url": f"data:;base64,{ENCODED}"})
        assert response.status_code == 202


# --- Fetching -------------------------------------------------------------------------------------


class Site:
    """Answers each path with a response, and records the requests."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.answers = answers
        self.paths: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.paths.append(head.split()[1])
        assert "\r\nCookie:" not in head
        writer.write(self.answers[self.paths[-1]])
        await writer.drain()
        await reader.read()


def found(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def moved(target: str) -> bytes:
    head = f"HTTP/1.1 302 Found\r\nlocation: {target}\r\nset-cookie: a=b\r\n"
    return f"{head}content-length: 0\r\n\r\n".encode()


async def fetched(site: Site, path: str, *, most: int = 10**6, seconds: float = 30.0) -> bytes:
    with UploadLimiter(LIMITS).slot() as slot:
        async with (
            listening(site.serve) as port,
            open_public_client(seconds, allow_private=True, user_agent="Test/1") as client,
        ):
            image = ImageBuffer(most)
            fetcher = ImageFetcher(client, enabled=True)
            await fetcher.fetch(f"http://127.0.0.1:{port}{path}", image, slot)
            assert slot.bytes_reserved == len(image.data)
            return bytes(image.data)


async def test_image_is_fetched_through_redirects() -> None:
    site = Site({"/a": moved("/b"), "/b": moved("c"), "/c": found(RED)})
    assert await fetched(site, "/a") == RED
    assert site.paths == ["/a", "/b", "/c"]


async def test_endless_redirects_are_refused() -> None:
    site = Site({"/a": moved("/a")})
    with pytest.raises(InvalidRequest, match="redirects"):
        await fetched(site, "/a")
    assert len(site.paths) == 1 + MAX_REDIRECTS


async def test_redirect_to_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The site itself counts as public here."""
    monkeypatch.setattr(http_client, "is_public", lambda host: host == "127.0.0.1")
    site = Site({"/a": moved("http://169.254.169.254/latest/meta-data")})
    with UploadLimiter(LIMITS).slot() as slot:
        async with (
            listening(site.serve) as port,
            open_public_client(30.0, allow_private=False, user_agent="Test/1") as client,
        ):
            fetcher = ImageFetcher(client, enabled=True)
            with pytest.raises(PrivateAddress):
                await fetcher.fetch(f"http://127.0.0.1:{port}/a", ImageBuffer(10), slot)
    assert site.paths == ["/a"]


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "gopher://127.0.0.1/", "//u:p@127.0.0.1/"]
)
async def test_redirect_to_another_scheme_is_refused(target: str) -> None:
    with pytest.raises(InvalidRequest):
        await fetched(Site({"/a": moved(target)}), "/a")


async def test_response_that_is_too_large_is_refused_while_it_arrives() -> None:
    endless = b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5_000_000)
    with pytest.raises(ImageTooLarge):
        await fetched(Site({"/a": endless}), "/a", most=1000)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "status 404"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "empty"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\nhalf", "0.5 s"),
        (b"nonsense\r\n\r\n", "no answer"),
    ],
)
async def test_response_without_an_image_is_explained(answer: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refused:
        await fetched(Site({"/a": answer}), "/a", seconds=0.5)
    assert refused.value.extra == {"field": "url"}


async def test_number_of_fetches_is_limited() -> None:
    class Never:
        async def get(self, text: str, headers: object) -> Any:
            await asyncio.Event().wait()
            yield b""

    fetcher = ImageFetcher(Never(), enabled=True)  # type: ignore[arg-type]
    with UploadLimiter(LIMITS).slot() as slot:
        fetches = [
            asyncio.create_task(fetcher.fetch("https://example.com/", ImageBuffer(1), slot))
            for _ in range(MAX_FETCHES)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await fetcher.fetch("https://example.com/", ImageBuffer(1), slot)
        for each in fetches:
            each.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)
        assert fetcher._fetches == 0
