"""The open streams of an API behind a real server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from app.http.server import Server
from app.main import create_app
from core.settings import Settings
from tests.support.api import Api, eventually, serve_api
from tests.support.server import serving

PATIENCE = 30.0  # seconds


@asynccontextmanager
async def serve_streams(settings: Settings) -> AsyncIterator[Api]:
    """As `serve_api`. Checks afterwards that no stream is open and that nothing is polled."""
    async with serve_api(settings) as (api, _):
        yield api
        await eventually(lambda: released(api))


@asynccontextmanager
async def stoppable(settings: Settings) -> AsyncIterator[tuple[Server, Api]]:
    """As `serve_api`, and gives the server, which stops as slowly as the settings allow."""
    server = Server(settings, app := create_app(settings))
    async with (
        serving(server) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client,
    ):
        yield server, Api(app, client, app.state.services, settings)


async def released(api: Api) -> bool:
    """Check that no stream is open, and that neither images nor jobs are polled."""
    pollers = (api.services.image_poller, api.services.job_poller)
    polled = [(len(each), each.running) for each in pollers]
    return len(api.services.streams) == 0 and polled == [(0, False)] * 2


async def opened(api: Api, streams: int) -> bool:
    return len(api.services.streams) == streams


async def connected(server: Server, connections: int) -> bool:
    return len(server.server_state.connections) == connections
