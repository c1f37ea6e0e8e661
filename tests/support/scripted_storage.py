"""A Cloud Storage that does what the emulator cannot: refuse, break off, and never end."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

BUCKET, FOLDER = "models", "bundles/colours"
URI = f"gs://{BUCKET}/{FOLDER}"
WEIGHTS = "model.onnx"


class ScriptedStorage:
    """Answers as Cloud Storage's JSON API does, with the files of one folder as the objects."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        self.url = ""
        self.status: dict[str, int] = {}  # what to answer for a file instead
        # Of the weights alone:
        self.breaks_after = 0  # bytes of an answer, after which the connection ends
        self.endless = False
        self.asked: list[str] = []  # names, and where in the file
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
    going: Callable[[], bool], answer: web.StreamResponse, request: web.Request
) -> None:
    """Write zeros, or until whoever asked hangs up. The connection ends with it."""
    try:
        with contextlib.suppress(ConnectionError):
            while going():
                await answer.write(bytes(10_000))
                await asyncio.sleep(0.001)  # as fast as it can would be gigabytes
    finally:
        # What nobody reads would keep the socket open for longer than the test lasts.
        if request.transport is not None:
            request.transport.abort()


@asynccontextmanager
async def scripted_storage(bundle: Path) -> AsyncIterator[ScriptedStorage]:
    """Listens on a free port of this machine; `url` says which."""
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
