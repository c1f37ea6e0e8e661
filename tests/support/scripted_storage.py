"""A Cloud Storage that refuses, damages bytes, breaks off and never ends, unlike the emulator."""

import asyncio
import base64
import contextlib
import json
import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import google_crc32c
from aiohttp import BodyPartReader, web

BUCKET, FOLDER = "models", "bundles/colours"
URI = f"gs://{BUCKET}/{FOLDER}"
WEIGHTS = "model.onnx"


class ScriptedStorage:
    """Responds as Cloud Storage's JSON API does. The objects are the files of one folder."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        self.url = ""
        self.status: dict[str, int] = {}  # the response for a file, instead of its bytes
        # Of the weights alone:
        self.breaks_after = 0  # bytes of a response, after which the connection ends
        self.endless = False
        self.asked: list[str] = []  # the names of files, and the offsets
        self.reading = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def list(self, request: web.Request) -> web.Response:
        if request.match_info["bucket"] != BUCKET:
            return web.json_response({"error": {"message": "no such bucket"}}, status=404)
        names = [f"{FOLDER}/{path.name}" for path in self.bundle.iterdir()]
        found = [name for name in names if name.startswith(request.query["prefix"])]
        items = [{"name": name} for name in found][: int(request.query["maxResults"])]
        return web.Response(text=json.dumps({"items": items}), content_type="application/json")

    async def download(self, request: web.Request) -> web.StreamResponse:
        folder, _, name = request.match_info["name"].rpartition("/")
        span = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "bytes=0-"))
        assert span is not None
        begin = int(span[1])
        self.asked.append(f"{name}@{begin}" if begin else name)
        if name in self.status:
            return web.Response(status=self.status[name], text="refused")
        there = request.match_info["bucket"] == BUCKET and folder == FOLDER
        if not there or not (self.bundle / name).is_file():
            return web.Response(status=404, text="no such object")
        data = (self.bundle / name).read_bytes()[begin:]
        status = 206 if begin else 200
        if name != WEIGHTS:
            return web.Response(body=data)
        self.reading.set()
        await self.go_on.wait()
        if not self.breaks_after and not self.endless:
            return web.Response(body=data, status=status)
        answer = web.StreamResponse(status=status)
        if not self.endless:
            answer.content_length = len(data)
        await answer.prepare(request)
        if self.endless:
            await write_while(lambda: self.endless, answer, request)
            return answer
        await answer.write(data[: self.breaks_after])
        if len(data) > self.breaks_after:
            assert request.transport is not None
            request.transport.close()
        return answer


async def write_while(
    going: Callable[[], bool],
    answer: web.StreamResponse,
    request: web.Request,
    data: bytes = bytes(10_000),
    pause: float = 0.001,  # without a limit, the response grows to gigabytes
) -> None:
    """Writes `data` repeatedly while `going()`, or until the client disconnects."""
    try:
        with contextlib.suppress(ConnectionError):
            while going():
                await answer.write(data)
                await asyncio.sleep(pause)
    finally:
        # Unread data would keep the socket open for longer than the test lasts.
        if request.transport is not None:
            request.transport.abort()


@asynccontextmanager
async def scripted_storage(bundle: Path) -> AsyncIterator[ScriptedStorage]:
    """Serves the storage on a free local port. `url` has the address."""
    cloud, app = ScriptedStorage(bundle), web.Application()
    app.router.add_get("/storage/v1/b/{bucket}/o", cloud.list)
    app.router.add_get("/download/storage/v1/b/{bucket}/o/{name:.+}", cloud.download)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    cloud.url = f"http://{host}:{port}"
    try:
        yield cloud
    finally:
        cloud.endless = False
        await runner.cleanup()


class ScriptedBucket:
    """One bucket of Cloud Storage's JSON API in memory, for uploads in one request.

    https://cloud.google.com/storage/docs/json_api/v1/objects
    """

    def __init__(self) -> None:
        self.url = ""
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.uploads: list[dict[str, str]] = []  # the metadata of each upload
        self.requests: list[str] = []  # methods
        self.refusals: deque[int] = deque()  # the status of one response each, until empty
        self.damages = False  # flips a bit of what it sends, as a faulty connection may
        self.trickles = False  # sends a byte at a time and does not end
        self.answering = asyncio.Event()
        self.answering.set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.method)
        await self.answering.wait()
        if self.refusals:
            return web.Response(status=self.refusals.popleft(), text="refused")
        if request.path.startswith("/upload/"):
            return await self._upload(request)
        name = request.match_info.get("name")
        if name is None:
            return web.json_response({"items": []})
        if name not in self.objects:
            return web.json_response({"error": {"message": "No such object"}}, status=404)
        if request.method == "DELETE":
            del self.objects[name]
            return web.Response(status=204)
        if not request.path.startswith("/download/"):
            return web.json_response({"name": name})
        return await self._download(request, self.objects[name])

    async def _upload(self, request: web.Request) -> web.Response:
        parts = await request.multipart()
        head = await parts.next()
        assert isinstance(head, BodyPartReader)
        metadata = json.loads(await head.read())
        body = await parts.next()
        assert isinstance(body, BodyPartReader)
        self.uploads.append(metadata | {"contentType": body.headers["content-type"]})
        name, data = metadata["name"], bytes(await body.read())
        if request.query.get("ifGenerationMatch") == "0" and name in self.objects:
            return web.json_response({"error": {"message": "conditionNotMet"}}, status=412)
        self.objects[name] = data
        self.generations[name] = self.generations.get(name, 0) + 1
        return web.json_response({"name": name, "generation": str(self.generations[name])})

    async def _download(self, request: web.Request, data: bytes) -> web.StreamResponse:
        headers = {"X-Goog-Hash": f"crc32c={crc32c(data)}"}
        if self.damages:
            data = bytes([data[0] ^ 1]) + data[1:]
        if not self.trickles:
            return web.Response(body=data, headers=headers)
        answer = web.StreamResponse()
        await answer.prepare(request)
        await write_while(lambda: self.trickles, answer, request, b"x", 0.05)
        return answer


def crc32c(data: bytes) -> str:
    """As Cloud Storage writes it: https://cloud.google.com/storage/docs/hashes-etags"""
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


@asynccontextmanager
async def scripted_bucket() -> AsyncIterator[ScriptedBucket]:
    """Serves the bucket on a free local port. `url` has the address."""
    bucket, app = ScriptedBucket(), web.Application(client_max_size=1 << 26)
    for path in (
        "/upload/storage/v1/b/{bucket}/o",
        "/download/storage/v1/b/{bucket}/o/{name:.+}",
        "/storage/v1/b/{bucket}/o/{name:.+}",
        "/storage/v1/b/{bucket}/o",
    ):
        app.router.add_route("*", path, bucket.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    bucket.url = f"http://{host}:{port}"
    try:
        yield bucket
    finally:
        bucket.trickles = False
        bucket.answering.set()
        await runner.cleanup()
