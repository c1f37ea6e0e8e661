"""An image's stream across real processes, one of which is killed under it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from httpx import AsyncClient

from tests.support.event_streams import everything, reading
from tests.support.pictures import picture, sha256
from tests.support.stack import Stack, free_port

TIMEOUT = 60.0


@asynccontextmanager
async def another_api(stack: Stack) -> AsyncIterator[AsyncClient]:
    """A second API process over the same data folder."""
    port = free_port()
    first, stack.environment["API_PORT"] = stack.environment["API_PORT"], str(port)
    process = stack.launch("api")
    stack.environment["API_PORT"] = first
    try:
        async with AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT) as client:
            async with asyncio.timeout(TIMEOUT):
                while not await ready(client):  # noqa: ASYNC110 - another process sets no event
                    await asyncio.sleep(0.05)
            yield client
    finally:
        process.terminate()
        process.wait()


async def ready(client: AsyncClient) -> bool:
    try:
        return (await client.get("/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def test_stream_continues_in_another_process(tmp_path: Path, colour_bundle: Path) -> None:
    image = picture(seed=6)
    path = f"/api/v1/images/{sha256(image)}/stream"
    with Stack(tmp_path, colour_bundle) as stack:
        stack.stop("worker")
        assert stack.upload(image).status_code == 202
        async with (
            another_api(stack) as other,
            AsyncClient(base_url=str(stack.api.base_url), timeout=TIMEOUT) as client,
        ):
            broken = False
            async with reading(client, path) as reader:
                events = reader.events()
                seen = [await anext(events)]
                stack.kill("api")
                try:
                    seen += [event async for event in events]
                except httpx.TransportError:
                    broken = True
            assert broken
            stack.start("worker")
            seen += await everything(other, path, seen[-1].id)
            ids = [int(event.id) for event in seen]
            assert ids == sorted(set(ids))
            assert [event.event for event in seen].count("complete") == 1
            assert seen[-1].data["annotations"]
            again = await other.get(path, headers={"Last-Event-ID": seen[-1].id})
            assert again.status_code == 204
