"""Unexpected errors: a problem document, one traceback, and no response that looks complete."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from core.backends import Backend, open_backend
from core.clock import Clock, utc_now
from core.domain.records import RecordKey
from core.settings import Settings
from tests.support.api import api_settings, open_api, serve_api
from tests.support.classifiers import spawn_thread
from tests.support.faults import watched
from tests.support.logs import json_logs
from tests.support.metrics import samples, series
from tests.support.pictures import picture, sha256
from tests.support.plain_http import NO_TLS
from tests.support.problems import assert_problem
from tests.support.server import serving
from tests.support.worker import envelope, push_headers, settings_in
from worker.main import create_app as create_worker

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HASH = sha256(picture())
PAGE = "https://app.example"


class Bug(Exception):
    """An error without a handler."""


async def _bug(name: str, after: bool) -> None:
    if name in ("records.get", "records.claim"):
        raise Bug("the password is 1234")


@asynccontextmanager
async def broken(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[Backend]:
    """A backend with a bug in reads and changes of records."""
    async with open_backend(settings, clock) as backend:
        yield watched(backend, _bug)


def tracebacks(output: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return [line for line in lines if "exception" in line]


def assert_internal_error(answer: httpx.Response) -> None:
    assert_problem(answer, 500, "internal_error")
    assert "1234" not in answer.text


def assert_logged_once(output: str) -> None:
    (line,) = tracebacks(output)
    assert line["severity"] == "ERROR"
    assert line["trace"] == TRACEPARENT[3:35]
    assert line["exception"][0]["exc_type"] == "Bug"


async def test_500_of_the_api_is_a_problem_with_all_headers(
    tmp_path: Path, colour_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = api_settings(
        tmp_path, colour_bundle, cors_origins=(PAGE,), public_url="https://glimpse.example"
    )
    async with json_logs("api"), open_api(settings, opener=broken) as api:
        headers = {"Traceparent": TRACEPARENT, "Origin": PAGE}
        answer = await api.client.get(f"/api/v1/images/{HASH}", headers=headers)
        other = await api.client.get("/no/such/page", headers=headers)
        scraped = samples((await api.client.get("/metrics")).text)
    assert_internal_error(answer)
    differing = {"content-length"}
    for name, value in other.headers.items():
        assert name in differing or answer.headers.get_list(name) == [value], name
    for name in ("x-content-type-options", "strict-transport-security", "content-security-policy"):
        assert name in answer.headers
    # CORS headers let a page read the problem.
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert_logged_once(capsys.readouterr().out)
    route = "/api/v1/images/{image_hash}"
    name = "glimpse_http_requests_total"
    assert scraped[series(name, method="GET", route=route, status=500)] == 1


async def test_client_that_still_sends_gets_the_500(
    tmp_path: Path, colour_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The connection is closed as for every early response, not reset."""
    async with json_logs("api"), serve_api(api_settings(tmp_path, colour_bundle)) as (api, _):
        api.app.add_api_route("/broken", _fail_early, methods=["POST"])
        answer = await api.client.post(
            "/broken", content=_slowly(b"\0" * 100_000), headers={"Traceparent": TRACEPARENT}
        )
    assert_internal_error(answer)
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert_logged_once(capsys.readouterr().out)


async def test_connection_is_kept_after_a_500(
    tmp_path: Path, colour_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with json_logs("api"), serve_api(api_settings(tmp_path, colour_bundle)) as (api, _):
        api.app.add_api_route("/broken", _fail_early)
        addresses = set()
        for _ in range(3):
            answer = await api.client.get("/broken")
            assert_internal_error(answer)
            stream = answer.extensions["network_stream"]
            addresses.add(stream.get_extra_info("client_addr"))
    assert len(addresses) == 1
    assert len(tracebacks(capsys.readouterr().out)) == 3


async def test_error_during_a_response_breaks_the_connection(
    tmp_path: Path, colour_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is appended, and the client notices that the response is incomplete."""
    async with json_logs("api"), serve_api(api_settings(tmp_path, colour_bundle)) as (api, _):
        api.app.add_api_route("/broken", _fail_late)
        received = b""
        headers = {"Traceparent": TRACEPARENT}
        async with api.client.stream("GET", "/broken", headers=headers) as answer:
            with pytest.raises(httpx.RemoteProtocolError):
                async for piece in answer.aiter_raw():
                    received += piece
        scraped = samples((await api.client.get("/metrics")).text)
    assert (answer.status_code, received) == (200, b"half")
    assert_logged_once(capsys.readouterr().out)
    name = "glimpse_http_requests_total"
    assert scraped[series(name, method="GET", route="/broken", status=200)] == 1
    assert scraped["glimpse_http_requests_in_flight"] == 1  # the scrape itself


async def test_error_in_a_middleware_is_answered(
    tmp_path: Path, colour_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with json_logs("api"), open_api(api_settings(tmp_path, colour_bundle)) as api:
        api.app.user_middleware.insert(1, Middleware(_Faulty))  # inside of `RequestContext` only
        answer = await api.client.get("/health", headers={"Traceparent": TRACEPARENT})
    assert_internal_error(answer)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert_logged_once(capsys.readouterr().out)


async def test_500_of_the_worker_is_a_problem_and_rejects_the_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worker_settings = settings_in(tmp_path)
    worker = create_worker(worker_settings, opener=broken, spawn=spawn_thread)
    transport = httpx.ASGITransport(worker)
    async with (
        json_logs("worker"),
        worker.router.lifespan_context(worker),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        (model,) = worker.state.context.models.identities
        headers = {"Traceparent": TRACEPARENT, **push_headers(worker_settings)}
        pushed = envelope(RecordKey("public", HASH, model))
        capsys.readouterr()
        answer = await client.post("/generate_annotations", content=pushed, headers=headers)
        scraped = samples((await client.get("/metrics")).text)
    assert_internal_error(answer)
    (line,) = tracebacks(capsys.readouterr().out)
    assert line["exception"][0]["exc_type"] == "Bug"
    assert line["image_hash"] == HASH
    name = "glimpse_http_requests_total"
    labels = {"method": "POST", "route": "/generate_annotations", "status": 500}
    assert scraped[series(name, **labels)] == 1


async def test_error_during_a_response_of_the_worker_breaks_the_connection(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = create_worker(settings_in(tmp_path), spawn=spawn_thread)
    worker.add_api_route("/broken", _fail_late)
    config = uvicorn.Config(worker, lifespan="on", log_config=None, access_log=False)
    async with (
        json_logs("worker"),
        serving(uvicorn.Server(config)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", verify=NO_TLS) as client,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/broken", headers={"Traceparent": TRACEPARENT})
    assert_logged_once(capsys.readouterr().out)


# --- Faults ---------------------------------------------------------------------------------------


class _Faulty:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise Bug("the password is 1234")


async def _fail_early(request: Request) -> Response:
    raise Bug("the password is 1234")


async def _fail_late(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"half"
        raise Bug("the password is 1234")

    return StreamingResponse(pieces())


async def _slowly(data: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), 10_000):
        yield data[begin : begin + 10_000]
        await asyncio.sleep(0)
