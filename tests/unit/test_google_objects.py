"""Import buckets on a Cloud Storage that pages, compresses, fails and never ends."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from core.backends.google import objects
from core.backends.google.blobs import RETRY
from core.backends.google.endpoints import authorized_session
from core.backends.google.objects import THREADS, CloudObjectSource
from core.errors import Unavailable
from core.ports import StoredObject
from tests.support.scripted_storage import ScriptedBucket, scripted_bucket, write_while

PAGES = {
    "": (["a/"], "2"),
    "2": (["b", "c/", "d"], "3"),
    "3": (["e", "f"], ""),
}
BOMB = gzip.compress(bytes(1_000_000))
DATA = b"an image" * 1000


class Cloud:
    """Cloud Storage's JSON API for the buckets `photos`, `forbidden` and `placeholders`."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.endless = True

    async def list(self, request: web.Request) -> web.Response:
        bucket, token = request.match_info["bucket"], request.query.get("pageToken", "")
        self.tokens.append(token)
        if bucket == "forbidden":
            return web.json_response({"error": {"message": "no permission to list"}}, status=403)
        names, following = (["a/"], "again") if bucket == "placeholders" else PAGES[token]
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
        # As Cloud Storage answers a client that accepts gzip.
        headers = {"Content-Encoding": "gzip", "X-Goog-Stored-Content-Encoding": "gzip"}
        return web.Response(body=BOMB, headers=headers)


@pytest.fixture
def deadline() -> float:
    """Seconds for each call, which a test may override by `parametrize`."""
    return objects.DEADLINE


def source_at(url: str, deadline: float, monkeypatch: pytest.MonkeyPatch) -> CloudObjectSource:
    monkeypatch.setattr(objects, "DEADLINE", deadline)
    client = storage.Client(
        project="demo",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": url},
        _http=authorized_session(None, THREADS),
    )
    return CloudObjectSource(client)


@pytest.fixture
async def cloud(
    deadline: float, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Cloud, CloudObjectSource]]:
    cloud, app = Cloud(), web.Application()
    app.router.add_get("/storage/v1/b/{bucket}/o", cloud.list)
    app.router.add_get("/download/storage/v1/b/{bucket}/o/{name}", cloud.download)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    source = source_at(f"http://{host}:{port}", deadline, monkeypatch)
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
    assert answers.tokens == pages


async def test_an_object_is_read_as_it_is_stored(cloud: tuple[Cloud, CloudObjectSource]) -> None:
    _, source = cloud
    assert await source.read("photos", "bomb", 10_000) == BOMB


async def test_an_endless_object_is_read_up_to_the_limit(
    cloud: tuple[Cloud, CloudObjectSource],
) -> None:
    _, source = cloud
    assert await source.read("photos", "endless", 50_000) == bytes(50_001)


async def test_a_forbidden_bucket_is_unavailable(cloud: tuple[Cloud, CloudObjectSource]) -> None:
    """The operator has to grant the permission: the client's request is not at fault."""
    answers, source = cloud
    with pytest.raises(Unavailable):
        await source.list("forbidden", "", 10)
    assert len(answers.tokens) == 1


@pytest.mark.parametrize("deadline", [0.3])
@pytest.mark.parametrize(
    "call",
    [
        lambda source: source.read("photos", "endless", 10**9),
        lambda source: source.list("placeholders", "", 10),
    ],
    ids=["object", "listing"],
)
async def test_call_without_an_end_frees_its_thread_after_the_deadline(
    cloud: tuple[Cloud, CloudObjectSource],
    call: Callable[[CloudObjectSource], Awaitable[object]],
) -> None:
    _, source = cloud
    async with asyncio.timeout(30):
        with pytest.raises(Unavailable):
            await call(source)
        await source.close()  # waits for the threads


# --- Failures of Cloud Storage --------------------------------------------------------------------

Call = Callable[[CloudObjectSource], Awaitable[object]]
CALLS: dict[str, Call] = {
    "list": lambda source: source.list("photos", "", 10),
    "read": lambda source: source.read("photos", "a.jpg", len(DATA)),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@pytest.fixture
async def bucket() -> AsyncIterator[ScriptedBucket]:
    async with scripted_bucket() as bucket:
        bucket.objects["a.jpg"] = DATA
        yield bucket


@pytest.fixture
async def source(
    bucket: ScriptedBucket, deadline: float, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[CloudObjectSource]:
    source = source_at(bucket.url, deadline, monkeypatch)
    yield source
    bucket.trickles = False
    bucket.answering.set()
    await source.close()


async def test_bytes_damaged_on_the_way_are_refused(
    bucket: ScriptedBucket, source: CloudObjectSource
) -> None:
    bucket.damages = True
    with pytest.raises(Unavailable):
        await source.read("photos", "a.jpg", len(DATA))
    bucket.damages = False
    assert await source.read("photos", "a.jpg", len(DATA)) == DATA


@each_call
@pytest.mark.parametrize("status", [429, 503])
async def test_a_passing_failure_is_retried(
    bucket: ScriptedBucket, source: CloudObjectSource, call: Call, status: int
) -> None:
    bucket.refusals.append(status)
    await call(source)
    assert len(bucket.requests) == 2


@each_call
@pytest.mark.parametrize("deadline", [60.0])
async def test_a_request_that_hangs_frees_its_thread(
    bucket: ScriptedBucket,
    source: CloudObjectSource,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objects, "TIMEOUT", (0.1, 0.1))
    monkeypatch.setattr(objects, "RETRY", RETRY.with_timeout(0.1))
    bucket.answering.clear()
    async with asyncio.timeout(30):
        with pytest.raises(Unavailable):
            await call(source)


@pytest.mark.parametrize("deadline", [0.5])
async def test_a_caller_does_not_wait_for_a_free_thread_beyond_the_deadline(
    bucket: ScriptedBucket, source: CloudObjectSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "TIMEOUT", (60.0, 60.0))
    bucket.answering.clear()
    calls = [
        asyncio.create_task(source.read("photos", "a.jpg", len(DATA))) for _ in range(THREADS + 1)
    ]
    async with asyncio.timeout(30):
        ended = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(each) for each in ended} == {Unavailable}
