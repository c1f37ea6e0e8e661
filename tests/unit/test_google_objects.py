"""What the emulator does not do: listings of several pages, and objects that unpack themselves."""

import gzip
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from core.backends.google.objects import CloudObjectSource
from core.errors import Unavailable
from core.ports import StoredObject
from tests.support.scripted_storage import write_while

PAGES = {
    "": (["a/"], "2"),
    "2": (["b", "c/", "d"], "3"),
    "3": (["e", "f"], ""),
}
BOMB = gzip.compress(bytes(1_000_000))


class Cloud:
    """Answers as Cloud Storage's JSON API does."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.endless = True

    async def list(self, request: web.Request) -> web.Response:
        if request.match_info["bucket"] == "closed":
            return web.json_response({"error": {"message": "no right to list"}}, status=403)
        token = request.query.get("pageToken", "")
        self.asked.append(token)
        names, following = PAGES[token]
        body = {"items": [{"name": name, "size": "7"} for name in names]}
        if following:
            body["nextPageToken"] = following  # type: ignore[assignment]
        return web.Response(text=json.dumps(body), content_type="application/json")

    async def download(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["name"] == "endless":
            answer = web.StreamResponse()
            await answer.prepare(request)
            await write_while(lambda: self.endless, answer, request)
            return answer
        # As it does for whoever accepts gzip.
        headers = {"Content-Encoding": "gzip", "X-Goog-Stored-Content-Encoding": "gzip"}
        return web.Response(body=BOMB, headers=headers)


@pytest.fixture
async def cloud() -> AsyncIterator[tuple[Cloud, CloudObjectSource]]:
    cloud, app = Cloud(), web.Application()
    app.router.add_get("/storage/v1/b/{bucket}/o", cloud.list)
    app.router.add_get("/download/storage/v1/b/{bucket}/o/{name}", cloud.download)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    client = storage.Client(
        project="demo",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": f"http://{host}:{port}"},
    )
    source = CloudObjectSource(client)
    yield cloud, source
    cloud.endless = False
    await source.close()
    await runner.cleanup()


@pytest.mark.parametrize(
    ("limit", "names", "pages"),
    [(10, "bdef", ["", "2", "3"]), (3, "bde", ["", "2", "3"]), (1, "b", ["", "2"])],
)
async def test_pages_are_read_as_far_as_the_limit(
    cloud: tuple[Cloud, CloudObjectSource], limit: int, names: str, pages: list[str]
) -> None:
    answers, source = cloud
    assert await source.list("photos", "", limit) == [StoredObject(name, 7) for name in names]
    assert answers.asked == pages


async def test_an_object_is_read_as_it_is_stored(cloud: tuple[Cloud, CloudObjectSource]) -> None:
    _, source = cloud
    assert await source.read("photos", "bomb", 10_000) == BOMB


async def test_what_has_no_end_is_not_waited_for(cloud: tuple[Cloud, CloudObjectSource]) -> None:
    _, source = cloud
    assert await source.read("photos", "endless", 50_000) == bytes(50_001)


async def test_a_bucket_that_we_may_not_list_is_ours_to_mend(
    cloud: tuple[Cloud, CloudObjectSource],
) -> None:
    _, source = cloud
    with pytest.raises(Unavailable):
        await source.list("closed", "", 10)
