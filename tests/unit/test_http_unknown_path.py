"""Paths without a route have a code of their own, and often a suggestion."""

import pytest

from tests.support.api import Api
from tests.support.problems import assert_problem

ITEM = f"/api/v1/images/{'0' * 64}"


@pytest.mark.parametrize(
    ("path", "suggested"),
    [
        (f"/{ITEM}", ITEM),
        (f"{ITEM}/", ITEM),
        (ITEM.replace("/images/", "//images//"), ITEM),
        (f"{ITEM}/stream/", f"{ITEM}/stream"),
        ("/api/v1/jobs/", "/api/v1/jobs"),
        ("/api/v1/jobs/batch-predict/", "/api/v1/jobs/batch-predict"),
        ("/what/fast//", "/what/fast"),
        ("/health/", "/health"),
    ],
)
async def test_slash_too_many_is_an_unknown_path_with_a_suggestion(
    api: Api, path: str, suggested: str
) -> None:
    origin = str(api.client.base_url).rstrip("/")
    problem = assert_problem(await api.client.get(origin + path), 404, "unknown_path")
    assert problem["detail"].endswith(f"Did you mean {suggested}?")


@pytest.mark.parametrize("path", ["/nowhere", "/api/v1", "/api/v2/images", "/API/V1/images/x"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_path_without_a_route_is_unknown(api: Api, method: str, path: str) -> None:
    problem = assert_problem(await api.client.request(method, path), 404, "unknown_path")
    assert "/openapi.json" in problem["detail"]


async def test_unknown_image_keeps_its_code(api: Api) -> None:
    assert_problem(await api.client.get(ITEM), 404, "not_found")


async def test_request_for_a_websocket_path_says_what_the_path_serves(api: Api) -> None:
    answer = await api.client.get(f"/api/v1/ws/jobs/{'0' * 32}")
    assert_problem(answer, 426, "upgrade_required")
    assert answer.headers["upgrade"] == "websocket"
