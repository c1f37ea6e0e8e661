"""Shutdown: requests that were sent are answered, with 503 if they cannot finish."""

import asyncio
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest

from app.http.protocol import HttpProtocol
from app.http.server import Server
from app.main import create_app
from app.services import Services
from core.backends.embedded import database
from core.domain.policy import SHUTDOWN_SECONDS
from tests.support.api import api_settings, eventually
from tests.support.pictures import picture
from tests.support.plain_http import NO_TLS

TIMEOUT = 30.0


@asynccontextmanager
async def serving(
    tmp_path: Path, bundle: Path, seconds: float = SHUTDOWN_SECONDS
) -> AsyncIterator[tuple[Server, int]]:
    settings = api_settings(tmp_path, bundle)
    server = Server(settings, create_app(settings), seconds)
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:

        async def started() -> bool:
            assert not task.done(), "the server did not start"
            return server.started

        await eventually(started)
        yield server, listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def test_request_that_was_sent_before_the_shutdown_is_answered(
    tmp_path: Path, colour_bundle: Path
) -> None:
    """The connection was idle, and the server has not read the request from the socket yet."""
    async with serving(tmp_path, colour_bundle) as (server, port):
        with socket.create_connection(("127.0.0.1", port)) as client:

            async def accepted() -> bool:
                return len(server.server_state.connections) == 1

            await eventually(accepted)
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            # The event loop does not run in between.
            (connection,) = server.server_state.connections
            assert isinstance(connection, HttpProtocol)
            connection.shutdown()
            client.settimeout(TIMEOUT)
            response = await asyncio.to_thread(_everything, client)
        assert response.startswith(b"HTTP/1.1 204")
        assert b"connection: close" in response


def _everything(client: socket.socket) -> bytes:
    received = b""
    while piece := client.recv(4096):
        received += piece
    return received


async def test_idle_connection_does_not_delay_the_shutdown(
    tmp_path: Path, colour_bundle: Path
) -> None:
    async with serving(tmp_path, colour_bundle) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        server.should_exit = True
        async with asyncio.timeout(TIMEOUT):
            assert await reader.read() == b""
        writer.close()


async def test_request_that_cannot_finish_is_answered_503(
    tmp_path: Path,
    colour_bundle: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store hangs for longer than a shutdown may take."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 60.0)  # longer than this test
    async with (
        serving(tmp_path, colour_bundle, seconds=1) as (server, port),
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT, verify=NO_TLS
        ) as client,
    ):
        with closing(sqlite3.connect(tmp_path / "data" / "records.db")) as other:
            other.execute("BEGIN IMMEDIATE")  # locks the database
            posting = asyncio.create_task(client.post("/what/fast", files={"img": picture()}))
            services: Services = server._app.state.services
            submissions = services.images._submissions

            async def submitting() -> bool:
                return submissions.in_flight > 0

            await eventually(submitting)
            server.should_exit = True
            response = await posting
            other.rollback()
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert "shutting down" in response.json()["detail"]
    assert (response.headers["connection"], response.headers["retry-after"]) == ("close", "1")
    assert "Traceback" not in "".join(capfd.readouterr())
