"""Each request has a trace context and a log line."""

import re

import httpx
import pytest
import structlog
from fastapi import FastAPI

from core.domain.records import RecordKey
from core.http.problems import install_problem_handlers
from core.observability.request_middleware import RequestContext
from core.observability.tracing import current_traceparent
from tests.support.logs import json_logs, lines

KEY = RecordKey("public", "a" * 64, "colours@0123456789ab")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def application() -> FastAPI:
    app = FastAPI()
    install_problem_handlers(app)
    app.add_middleware(RequestContext)

    @app.api_route("/trace", methods=["GET", "POST"])
    async def trace() -> str:
        structlog.get_logger("test").info("working")
        structlog.contextvars.bind_contextvars(image_hash=KEY.image_hash)
        return current_traceparent()

    return app


async def ask(method: str = "GET", path: str = "/trace", **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(application())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, headers=headers)


async def test_request_continues_the_trace_of_its_caller() -> None:
    assert (await ask(traceparent=TRACEPARENT)).json() == TRACEPARENT


async def test_request_without_a_trace_starts_a_new_one() -> None:
    one, other = (await ask()).json(), (await ask()).json()
    # Not sampled: nothing records it.
    assert re.fullmatch(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-00", one)
    assert one != other


@pytest.mark.parametrize(
    "malformed",
    [
        "",
        "00-xyz",
        TRACEPARENT.upper(),
        TRACEPARENT + "-extra",
        "ff" + TRACEPARENT[2:],
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
    ],
)
async def test_malformed_trace_is_replaced(malformed: str) -> None:
    trace = (await ask(traceparent=malformed)).json()
    assert trace != malformed
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", trace)


async def test_trace_of_a_later_version_is_read_as_version_00() -> None:
    later = "01" + TRACEPARENT[2:] + "-more"
    assert (await ask(traceparent=later)).json() == TRACEPARENT


async def test_request_has_one_line_with_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    async with json_logs("api"):
        await ask("POST", traceparent=TRACEPARENT)
    working, request = [line for line in lines(capsys) if line["message"] != "HTTP Request"]
    assert working["trace"] == request["trace"] == TRACEPARENT[3:35]
    assert request["message"] == "request"
    assert (request["method"], request["path"], request["status"]) == ("POST", "/trace", 200)
    assert request["milliseconds"] >= 0
    # The line about the request has what its handler has bound.
    assert request["image_hash"] == KEY.image_hash


async def test_successful_reads_are_not_logged_at_info(capsys: pytest.CaptureFixture[str]) -> None:
    async with json_logs("api"):
        await ask("GET")
        await ask("GET", "/nowhere")
    requests = [line for line in lines(capsys) if line["message"] == "request"]
    assert [line["status"] for line in requests] == [404]


async def test_successful_reads_are_logged_at_debug(capsys: pytest.CaptureFixture[str]) -> None:
    async with json_logs("api", "debug"):
        await ask()
    (request,) = [line for line in lines(capsys) if line["message"] == "request"]
    assert (request["severity"], request["status"]) == ("DEBUG", 200)


async def test_log_context_ends_with_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    async with json_logs("api"):
        await ask("POST")
        await ask("POST")
    working = [line for line in lines(capsys) if line["message"] == "working"]
    assert len(working) == 2
    assert all("image_hash" not in line for line in working)
