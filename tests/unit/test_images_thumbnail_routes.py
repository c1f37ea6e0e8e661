"""`GET /api/v1/images/{hash}/thumbnail`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.domain.messages import MakeThumbnail
from core.domain.records import NO_THUMBNAIL, thumbnail_name
from tests.support.api import Api, api_settings, open_api
from tests.support.pictures import picture, sha256
from tests.support.problems import assert_problem

IMAGE = picture()
HASH = sha256(IMAGE)
PATH = f"/api/v1/images/{HASH}/thumbnail"
WEBP = b"RIFF....WEBP"


@pytest.fixture
async def api(tmp_path: Path, colour_bundle: Path) -> AsyncIterator[Api]:
    async with open_api(api_settings(tmp_path, colour_bundle)) as opened:
        await opened.client.post("/api/v1/images", content=IMAGE)
        await opened.finish_submissions()
        yield opened


async def store(api: Api, data: bytes = WEBP) -> None:
    await api.services.backend.blobs.put(thumbnail_name("public", HASH), data, "image/webp")


def asked_for(api: Api) -> int:
    """The number of messages that ask for the thumbnail."""
    found = [each for each in api.messages() if each.get("kind") == "make_thumbnail"]
    expected = MakeThumbnail("public", HASH).attributes()
    assert all({**each, "traceparent": ""} == {**expected, "traceparent": ""} for each in found)
    return len(found)


async def test_stored_thumbnail_is_immutable(api: Api) -> None:
    await store(api)
    answer = await api.client.get(PATH)
    assert (answer.status_code, answer.content) == (200, WEBP)
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["cache-control"] == "public, max-age=3600, immutable"
    assert answer.headers["x-content-type-options"] == "nosniff"
    etag = answer.headers["etag"]
    same = await api.client.get(PATH, headers={"If-None-Match": etag})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    head = await api.client.head(PATH)
    assert (head.status_code, head.headers["etag"]) == (200, etag)


async def test_missing_thumbnail_is_requested_once(api: Api) -> None:
    await api.succeed(HASH)
    for _ in range(3):
        answer = await api.client.get(PATH)
        assert (answer.status_code, answer.content) == (202, b"")
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["cache-control"] == "no-store"
    assert asked_for(api) == 1
    await store(api)
    assert (await api.client.get(PATH)).status_code == 200


async def test_image_that_waits_for_its_labels_gets_its_thumbnail_with_them(api: Api) -> None:
    assert (await api.client.get(PATH)).status_code == 202
    assert asked_for(api) == 0


async def test_image_without_thumbnail_is_not_found(api: Api) -> None:
    unknown = PATH.replace(HASH, "0" * 64)
    assert_problem(await api.client.get(unknown), 404, "not_found")
    assert_problem(await api.client.get(PATH.replace(HASH, "xyz")), 422, "invalid_request")
    await store(api, NO_THUMBNAIL)
    problem = assert_problem(await api.client.get(PATH), 404, "not_found")
    assert "cannot be decoded" in problem["detail"]
    assert api.traces().messages == 1


async def test_deleted_image_has_no_thumbnail(api: Api) -> None:
    await store(api)
    assert (await api.client.delete(f"/api/v1/images/{HASH}")).status_code == 204
    assert not await api.services.backend.blobs.exists(thumbnail_name("public", HASH))
    assert_problem(await api.client.get(PATH), 404, "not_found")


async def test_setting_turns_thumbnails_off(tmp_path: Path, colour_bundle: Path) -> None:
    settings = api_settings(tmp_path / "off", colour_bundle, thumbnails=False)
    async with open_api(settings) as api:
        await store(api)
        problem = assert_problem(await api.client.get(PATH), 404, "not_found")
        assert "THUMBNAILS" in problem["detail"]
