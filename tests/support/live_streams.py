"""The open streams of an API behind a real server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from app.http.server import Server
from app.main import create_app
from app.streams.poller import Poller
from core.settings import Settings
from tests.support.api import Api, eventually, serve_api
from tests.support.data_folders import begin_data_folder
from tests.support.plain_http import NO_TLS
from tests.support.server import serving

TIMEOUT = 30.0  # seconds


@asynccontextmanager
async def serve_streams(settings: Settings) -> AsyncIterator[Api]:
    """As `serve_api`. Checks afterwards that no stream is open and that nothing is polled."""
    async with serve_api(settings) as (api, _):
        yield api
        await eventually(lambda: released(api))


@asynccontextmanager
async def stoppable(settings: Settings) -> AsyncIterator[tuple[Server, Api]]:
    """As `serve_api`, and gives the server, which stops as slowly as the settings allow."""
    begin_data_folder(settings)
    server = Server(settings, app := create_app(settings), shutdown_seconds=3600)
    async with (
        serving(server) as port,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT, verify=NO_TLS
        ) as client,
    ):
        yield server, Api(app, client, app.state.services, settings)


async def released(api: Api) -> bool:
    """Check that no stream is open, and that neither images nor jobs are polled."""
    pollers = (api.services.image_poller, api.services.job_poller)
    polled = [(len(each), each.running) for each in pollers]
    return len(api.services.streams) == 0 and polled == [(0, False)] * 2


async def opened(api: Api, streams: int) -> bool:
    return len(api.services.streams) == streams


async def sending(server: Server) -> bool:
    """Whether a client does not read what is being sent to it."""
    connections = server.server_state.connections
    return any(each.transport.get_write_buffer_size() > 0 for each in connections)


async def polled(poller: Poller[Any, Any, Any], times: int) -> None:
    """Wait until the poller has begun so many more lookups."""
    wanted = poller._lookups + times

    async def reached() -> bool:
        return poller._lookups >= wanted

    await eventually(reached)


async def connected(server: Server, connections: int) -> bool:
    return len(server.server_state.connections) == connections
