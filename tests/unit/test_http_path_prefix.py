"""`PUBLIC_URL` with a path: links have it, and requests may have it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.api import Api, api_settings, open_api
from tests.support.pictures import picture, sha256
from tests.support.problems import assert_problem

IMAGE = picture()
BASE = "https://example.com/glimpse"
ITEM = f"/api/v1/images/{sha256(IMAGE)}"


@pytest.fixture
async def api(tmp_path: Path, colour_bundle: Path) -> AsyncIterator[Api]:
    async with open_api(api_settings(tmp_path, colour_bundle, public_url=BASE)) as api:
        yield api


@pytest.mark.parametrize("prefix", ["", "/glimpse"])
async def test_paths_work_with_and_without_the_prefix(api: Api, prefix: str) -> None:
    """A proxy may remove the path of PUBLIC_URL, or not."""
    for path, wanted in (("/", 200), ("/docs", 200), ("/openapi.json", 200), ("/ready", 200)):
        assert (await api.client.get(prefix + path)).status_code == wanted
    answer = await api.client.post(f"{prefix}/api/v1/images", content=IMAGE)
    where = f"{BASE}{ITEM}?model={api.services.model}"
    assert (answer.status_code, answer.headers["location"]) == (202, where)
    await api.finish_submissions()
    assert (await api.client.get(prefix + ITEM)).headers["location"] == where
    answer = await api.client.get(f"{prefix}/what/status/{sha256(IMAGE)}")
    assert answer.headers["location"] == f"{BASE}/what/status/{sha256(IMAGE)}"
    answer = await api.client.post(f"{prefix}/what/fast", files={"img": IMAGE})
    assert answer.headers["location"] == f"{BASE}/what/status/{sha256(IMAGE)}"
    answer = await api.client.post(
        f"{prefix}/api/v1/jobs/batch-predict", json={"image_hashes": [sha256(IMAGE)]}
    )
    job = answer.json()
    assert answer.headers["location"] == job["poll_url"] == f"{BASE}/api/v1/jobs/{job['job_id']}"
    link = (await api.client.get(f"{prefix}{ITEM}/content")).headers["location"]
    assert link.startswith(f"{BASE}/local/blobs/")
    assert (await api.client.get(link.removeprefix("https://example.com"))).content == IMAGE


async def test_prefix_alone_leads_to_the_page_whose_links_are_relative(api: Api) -> None:
    answer = await api.client.get("/glimpse")
    assert (answer.status_code, answer.headers["location"]) == (308, "/glimpse/")
    page = await api.client.get("/glimpse/")
    docs = await api.client.get("/glimpse/docs")
    for html in (page.text, docs.text):
        for absolute in ('href="/', 'src="/', "url: '/"):
            assert absolute not in html
    assert (await api.client.get("/glimpse/docs/assets/start.js")).status_code == 200


async def test_other_prefixes_are_unknown_paths(api: Api) -> None:
    for path in ("/glimpses/docs", "/glimpse/glimpse/docs", "/x/glimpse/docs"):
        assert_problem(await api.client.get(path), 404, "unknown_path")


async def test_document_names_the_server(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    assert document["servers"] == [{"url": BASE}]
