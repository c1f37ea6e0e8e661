"""`GET /api/v1/images`."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.domain.principals import Scope
from tests.support.api import Api, api_settings, bearer, open_api
from tests.support.pictures import picture, sha256

IMAGES = "/api/v1/images"
PICTURES = [picture(n, size=(8, 8)) for n in range(5)]
HASHES = [sha256(image) for image in PICTURES]


@pytest.fixture
async def api(tmp_path: Path, colour_bundle: Path) -> AsyncIterator[Api]:
    async with open_api(api_settings(tmp_path, colour_bundle)) as opened:
        for image in PICTURES:
            await opened.client.post(IMAGES, content=image)
        await opened.finish_submissions()
        yield opened


async def listed(api: Api, **query: Any) -> dict[str, Any]:
    response = await api.client.get(IMAGES, params=query)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    found: dict[str, Any] = response.json()
    return found


def hashes(found: dict[str, Any]) -> list[str]:
    return [image["image_hash"] for image in found["images"]]


async def test_pages_list_every_image_newest_first(api: Api) -> None:
    first = await listed(api, limit=3)
    assert hashes(first) == HASHES[:1:-1]
    second = await listed(api, limit=3, cursor=first["next_cursor"])
    assert hashes(second) == HASHES[1::-1]
    assert second["next_cursor"] is None


async def test_listed_image_is_the_same_as_the_image_itself(api: Api) -> None:
    await api.succeed(HASHES[0])
    (image,) = (await listed(api, status="success"))["images"]
    assert image == (await api.client.get(f"{IMAGES}/{HASHES[0]}")).json()


async def test_labels_select_a_view(api: Api) -> None:
    await api.succeed(HASHES[0])
    for labels, expected in (("1", 1), ("20", 2)):
        (image,) = (await listed(api, status="success", labels=labels))["images"]
        assert len(image["annotations"]) == expected


async def test_filters(api: Api) -> None:
    await api.succeed(HASHES[0])
    await api.fail(HASHES[1], retryable=False)
    assert hashes(await listed(api, label="red")) == HASHES[:1]
    assert hashes(await listed(api, label="grey", min_confidence="0.3")) == []
    assert hashes(await listed(api, category="colour", status="success")) == HASHES[:1]
    assert hashes(await listed(api, status="error")) == HASHES[1:2]
    assert hashes(await listed(api, status="", label="", model="", cursor="")) == HASHES[::-1]
    assert hashes(await listed(api, model=api.services.model)) == HASHES[::-1]
    assert hashes(await listed(api, model="colours")) == HASHES[::-1]
    assert hashes(await listed(api, model="other@0123456789ab")) == []
    created = (await api.record(HASHES[2])).created_at.isoformat()
    assert hashes(await listed(api, after=created)) == HASHES[:1:-1]
    assert hashes(await listed(api, before=created)) == HASHES[1::-1]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("labels=0", "labels"),
        ("labels=21", "labels"),
        ("limit=201", "limit"),
        ("min_confidence=1.5&label=red", "min_confidence"),
        ("min_confidence=nan&label=red", "min_confidence"),
        ("min_confidence=0.5", "min_confidence"),
        ("status=done", "status"),
        ("before=yesterday", "before"),
        ("model=x", "model"),
        ("cursor=zzz", "cursor"),
        (f"label={'x' * 201}", "label"),
    ],
)
async def test_wrong_parameters_are_named(api: Api, query: str, field: str) -> None:
    response = await api.client.get(f"{IMAGES}?{query}")
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert field in response.text


async def test_list_needs_the_scope_read(tmp_path: Path, colour_bundle: Path) -> None:
    settings = api_settings(tmp_path / "keys", colour_bundle, api_keys="required")
    async with open_api(settings) as api:
        for scope, status in ((Scope.READ, 200), (Scope.CLASSIFY, 403)):
            issued = await api.issue("ada", scope)
            response = await api.client.get(IMAGES, headers=bearer(issued))
            assert response.status_code == status
