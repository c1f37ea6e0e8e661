"""Live updates of an API behind a real server: how many are open, and that nothing stays."""

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
    """As `serve_api`. Whatever was done with it: its streams end, and nothing looks for them."""
    async with serve_api(settings) as (api, _):
        yield api
        await eventually(lambda: released(api))


@asynccontextmanager
async def stoppable(settings: Settings) -> AsyncIterator[tuple[Server, Api]]:
    """As `serve_api`, with the server, which takes as long to stop as the settings say."""
    server = Server(settings, app := create_app(settings))
    async with (
        serving(server) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client,
    ):
        yield server, Api(app, client, app.state.services, settings)


async def released(api: Api) -> bool:
    """No stream is open, and neither images nor jobs are polled."""
    pollers = (api.services.image_poller, api.services.job_poller)
    polled = [(len(each), each.running) for each in pollers]
    return len(api.services.streams) == 0 and polled == [(0, False)] * 2


async def opened(api: Api, streams: int) -> bool:
    return len(api.services.streams) == streams


async def connected(server: Server, connections: int) -> bool:
    return len(server.server_state.connections) == connections
