"""A Cloud Storage that fails for a while, which the emulator does not do."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from core.backends.google.blobs import THREADS, CloudBlobStore
from core.backends.google.endpoints import authorized_session
from core.backends.google.signed_links import LocalLinks
from core.backends.links import LinkSigner
from core.clock import utc_now
from core.errors import Unavailable

NAME = f"public/{'a' * 64}"


class Failing:
    """Answers every download with `status`, and a body that says so."""

    status = 503

    async def download(self, _: web.Request) -> web.Response:
        return web.Response(status=self.status, body=b"image" * 1000)


@pytest.fixture
async def cloud() -> AsyncIterator[tuple[Failing, CloudBlobStore]]:
    failing, app = Failing(), web.Application()
    app.router.add_get("/download/storage/v1/b/{bucket}/o/{name:.+}", failing.download)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    client = storage.Client(
        project="demo",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": f"http://{host}:{port}"},
        _http=authorized_session(None, THREADS),
    )
    links = LocalLinks(LinkSigner(b"secret" * 6, ""), utc_now)
    store = CloudBlobStore(client, "images", links)
    yield failing, store
    await store.close()
    await runner.cleanup()


async def test_reads_that_fail_together_leave_their_connections_to_others(
    cloud: tuple[Failing, CloudBlobStore],
) -> None:
    """Google's client holds an answer that it will ask for again, and the answer its connection."""
    failing, store = cloud
    refused = await asyncio.gather(
        *(store.get(NAME) for _ in range(THREADS)), return_exceptions=True
    )
    assert {type(each) for each in refused} == {Unavailable}
    failing.status = 200
    assert await store.get(NAME) == b"image" * 1000
