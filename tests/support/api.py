"""The API on a real embedded backend, in this process or behind a real server."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.routing import Route, WebSocketRoute

from app.audit_log import AuditLog
from app.auth.authenticator import Authenticator
from app.http.server import Server
from app.keys.service import Issued, Keys, Wanted
from app.main import create_app
from app.services import Services
from core.backends import BackendOpener, open_backend
from core.backends.embedded.blobs import TEMPORARY
from core.clock import Clock, utc_now
from core.domain.principals import ALL_SCOPES, Scope
from core.domain.records import (
    PUBLIC_TENANT,
    Annotation,
    Record,
    RecordError,
    RecordKey,
    complete,
    fail,
)
from core.http.route_access import access_of, every_route
from core.ports import RecordStore
from core.settings import Settings
from tests.support.data_folders import begin_data_folder
from tests.support.plain_http import NO_TLS
from tests.support.records import claimed
from tests.support.server import serving
from tests.support.settings import isolated_settings

LEASE = timedelta(seconds=30)
LABELS = (Annotation(1, "red", 0.75), Annotation(2, "grey", 0.25))
CATEGORIES = [Annotation(1, "colour", 1.0)]


@dataclass(frozen=True)
class Traces:
    """The numbers of records, blobs and messages."""

    records: int
    blobs: int
    messages: int


NOTHING = Traces(0, 0, 0)


@dataclass(frozen=True)
class Api:
    """A running API, a client for it, and its services."""

    app: FastAPI
    client: httpx.AsyncClient
    services: Services
    settings: Settings

    @property
    def records(self) -> RecordStore:
        return self.services.backend.records

    def key(self, image_hash: str, tenant: str = PUBLIC_TENANT) -> RecordKey:
        return self.services.images.key(tenant, image_hash)

    async def record(self, image_hash: str) -> Record:
        record = await self.records.get(self.key(image_hash))
        assert record is not None
        return record

    async def succeed(self, image_hash: str, tenant: str = PUBLIC_TENANT) -> None:
        """Complete the image, as the worker does."""
        claim = await claimed(self.records, self.key(image_hash, tenant), LEASE)
        assert claim is not None
        assert await self.records.change(
            claim.key, complete(claim, LABELS, categories=CATEGORIES, confident=True)
        )

    async def fail(self, image_hash: str, *, retryable: bool) -> None:
        """Fail the image, as the worker does."""
        claim = await claimed(self.records, self.key(image_hash), LEASE)
        assert claim is not None
        code = "model_unavailable" if retryable else "undecodable_image"
        assert await self.records.change(
            claim.key, fail(claim, RecordError(code, "It failed.", retryable))
        )

    @property
    def authenticator(self) -> Authenticator:
        authenticator = self.services.authenticator
        assert authenticator is not None, "these settings ask for no keys"
        return authenticator

    @property
    def audit(self) -> AuditLog:
        return self.services.audit

    async def issue(self, tenant: str, *scopes: Scope, **changes: Any) -> Issued:
        """A key of `tenant` with `scopes`, by default with all."""
        keys = Keys(
            self.authenticator.access.keys, self.authenticator.hasher, self.authenticator.clock
        )
        wanted = Wanted(tenant, "test", frozenset(scopes) or ALL_SCOPES, **changes)
        return await keys.create(wanted)

    async def finish_submissions(self) -> None:
        """Wait until the records of accepted images are `queued`."""
        await self.services.images._submissions.close()

    def messages(self) -> list[dict[str, str]]:
        """The attributes of the messages in the queue, oldest first."""
        path = self.settings.data_dir / "queue.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT attributes FROM messages ORDER BY id")
            return [json.loads(attributes) for (attributes,) in rows]

    def rows(self, table: str) -> int:
        """The number of rows of a table in the database of records."""
        return _rows(self.settings.data_dir / "records.db", table)

    def execute(self, statement: str) -> None:
        """Change the database of records directly."""
        with closing(sqlite3.connect(self.settings.data_dir / "records.db")) as connection:
            connection.execute(statement)
            connection.commit()

    def traces(self) -> Traces:
        folder = self.settings.data_dir
        files = (path for path in (folder / "blobs").rglob("*") if path.is_file())
        # A temporary file becomes a blob when it is renamed.
        blobs = sum(1 for path in files if not path.name.startswith(TEMPORARY))
        return Traces(
            _rows(folder / "records.db", "records"), blobs, _rows(folder / "queue.db", "messages")
        )


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once `condition` holds. The timeout of the test limits the wait."""
    while not await condition():  # noqa: ASYNC110 - conditions set no event
        await asyncio.sleep(0.01)


def _rows(database: Path, table: str) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)


def bearer(issued: Issued) -> dict[str, str]:
    """The header that a client with this key sends."""
    return {"Authorization": f"Bearer {issued.text}"}


def routes_of(app: FastAPI) -> list[tuple[str, str, Scope | str | None]]:
    """(method, path, access) of every route that is not a WebSocket."""
    found = []
    for route in every_route(app.router.routes):
        if isinstance(route, WebSocketRoute):
            continue
        assert isinstance(route, Route), f"{route} is of an unknown kind"
        methods = sorted(route.methods or ())
        found += [(method, route.path, access_of(route)) for method in methods]
    return found


def sockets_of(app: FastAPI) -> list[tuple[str, Scope | str | None]]:
    """(path, access) of every WebSocket."""
    routes = every_route(app.router.routes)
    return [(r.path, access_of(r)) for r in routes if isinstance(r, WebSocketRoute)]


def api_settings(tmp_path: Path, bundle: Path, **changes: object) -> Settings:
    """Settings that do not depend on the environment or on `.env`."""
    values = {
        "host": "127.0.0.1",
        "data_dir": tmp_path / "data",
        "model_uri": str(bundle),
        **changes,
    }
    return isolated_settings(**values)


@asynccontextmanager
async def open_api(
    settings: Settings, clock: Clock = utc_now, opener: BackendOpener = open_backend
) -> AsyncIterator[Api]:
    """The API without a network: the client calls the application directly."""
    begin_data_folder(settings)
    app = create_app(settings, clock, opener)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client,
    ):
        yield Api(app, client, app.state.services, settings)


@asynccontextmanager
async def serve_api(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[tuple[Api, int]]:
    """The API on a free port, and the port."""
    begin_data_folder(settings)
    app = create_app(settings, clock)
    # A failing test must not hang.
    server = Server(settings, app, shutdown_seconds=5)
    async with (
        serving(server) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, verify=NO_TLS) as client,
    ):
        yield Api(app, client, app.state.services, settings), port
