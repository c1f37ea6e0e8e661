"""`HEAD` has the status and the headers of `GET` on every route, and no content."""

import asyncio
from pathlib import Path

from tests.support.api import Api, api_settings, eventually, open_api, routes_of
from tests.support.jobs import running_job
from tests.support.live_streams import serve_streams
from tests.support.pictures import picture, sha256

IMAGE = picture()
CHANGING = ("date", "content-length", "transfer-encoding")


async def no_streams(api: Api) -> bool:
    return len(api.services.streams) == 0


async def test_every_get_answers_head(tmp_path: Path, colour_bundle: Path) -> None:
    async with serve_streams(api_settings(tmp_path, colour_bundle)) as api:
        await api.client.put(f"/api/v1/images/{sha256(IMAGE)}", content=IMAGE)
        await api.finish_submissions()
        job = await running_job(api.services.backend)
        checked = set()
        for method, path, _ in routes_of(api.app):
            if method != "GET" or "{" in path.replace("{image_hash}", "").replace("{job_id}", ""):
                continue
            url = path.format(image_hash=sha256(IMAGE), job_id=job.id)
            async with asyncio.timeout(30), api.client.stream("GET", url) as get:
                head = await api.client.head(url)
            assert head.status_code == get.status_code, url
            assert head.content == b""
            names = set(get.headers) - set(CHANGING)
            assert names == set(head.headers) - set(CHANGING), url
            checked.add(path)
        assert checked >= {
            "/api/v1/jobs",
            "/api/v1/jobs/{job_id}/results",
            "/api/v1/jobs/{job_id}/stream",
            "/api/v1/images/{image_hash}/stream",
            "/api/v1/models",
            "/docs",
            "/",
        }


async def test_head_of_a_stream_ends_and_frees_its_place(
    tmp_path: Path, colour_bundle: Path
) -> None:
    async with serve_streams(api_settings(tmp_path, colour_bundle, max_streams=1)) as api:
        job = await running_job(api.services.backend)
        async with asyncio.timeout(30):
            for _ in range(3):
                answer = await api.client.head(f"/api/v1/jobs/{job.id}/stream")
                assert answer.status_code == 200
                assert answer.headers["content-type"] == "text/event-stream"
                await eventually(lambda: no_streams(api))


async def test_head_of_what_is_missing_is_the_same_refusal(
    tmp_path: Path, colour_bundle: Path
) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        for url, status in (("/api/v1/jobs/x", 404), ("/api/v1/jobs?limit=0", 422), ("/x", 404)):
            answer = await api.client.head(url)
            assert (answer.status_code, answer.content) == (status, b"")
        assert (await api.client.head("/what/fast")).status_code == 405
