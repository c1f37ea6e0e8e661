"""Logs: two formats, one set of fields, and the image's hash on every line about it."""

import asyncio
import errno
import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
from fastapi import FastAPI

from core.domain.records import RecordKey
from core.http.problems import install_problem_handlers
from core.observability.logs import configure_logging, image_context
from core.observability.request_middleware import RequestContext
from core.observability.tracing import (
    NOWHERE,
    current,
    make_current,
    new_traceparent,
    parsed_traceparent,
)

KEY = RecordKey("public", "a" * 64, "colours@0123456789ab")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Logging is global: give back what was there."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configuration = structlog.get_config()
    structlog.contextvars.clear_contextvars()
    make_current(NOWHERE)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)
    structlog.contextvars.clear_contextvars()
    make_current(NOWHERE)


def configure(service: str, log_format: str, level: str, project: str = "") -> None:
    """As a process does, but loggers of modules must not be tied to one test's captured output."""
    configure_logging(service, log_format, level, project)
    structlog.configure(cache_logger_on_first_use=False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_lines_have_cloud_loggings_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure("api", "json", "info")
    structlog.get_logger("test").warning("accepted", bytes=3)
    (line,) = lines(capsys)
    assert line["message"] == "accepted"
    assert line["severity"] == "WARNING"
    assert line["service"] == "api"
    assert line["bytes"] == 3
    assert line["time"].endswith("Z")


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_line_that_cannot_be_written_fails_nothing(
    log_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", FullDisk())
    monkeypatch.setattr("sys.stderr", FullDisk())
    configure("api", log_format, "info")
    structlog.get_logger("test").info("accepted")
    logging.getLogger("uvicorn.error").info("Started")


def test_the_standard_librarys_lines_look_alike(capsys: pytest.CaptureFixture[str]) -> None:
    configure("api", "json", "info")
    logging.getLogger("uvicorn.error").info("Started on port %d", 8080)
    logging.getLogger("httpx").info("chatter")
    (line,) = lines(capsys)
    assert line["message"] == "Started on port 8080"
    assert line["severity"] == "INFO"
    assert line["service"] == "api"


def test_readable_lines_carry_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    configure("api", "console", "info")
    structlog.get_logger("test").info("accepted", bytes=3)
    shown = capsys.readouterr().out
    assert "accepted" in shown
    assert "bytes=3" in shown


@pytest.mark.parametrize(("level", "expected"), [("debug", 3), ("info", 2), ("error", 0)])
def test_the_level_is_the_least_that_is_shown(
    level: str, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("api", "json", level)
    log = structlog.get_logger("test")
    log.debug("one")
    log.info("two")
    log.warning("three")
    assert len(lines(capsys)) == expected


def test_exceptions_are_data(capsys: pytest.CaptureFixture[str]) -> None:
    configure("api", "json", "info")
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger("test").exception("failed")
    (line,) = lines(capsys)
    assert line["severity"] == "ERROR"
    assert line["exception"][0]["exc_type"] == "ValueError"


async def test_every_line_inside_an_image_context_carries_its_hash(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("worker", "json", "info")
    log = structlog.get_logger("test")

    async def deep() -> None:
        log.info("deep")
        await asyncio.to_thread(log.info, "in a thread")
        logging.getLogger("library").info("from a library")

    with image_context(KEY):
        await asyncio.gather(deep())
    log.info("outside")
    *inside, outside = lines(capsys)
    assert len(inside) == 3
    for line in inside:
        assert (line["image_hash"], line["tenant"]) == (KEY.image_hash, "public")
    assert "image_hash" not in outside


def test_new_traces_are_well_formed_and_differ() -> None:
    one, other = new_traceparent(), new_traceparent()
    # Nobody has recorded anything of it yet.
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", one)
    assert one != other


# --- The middleware -------------------------------------------------------------------------------


def application() -> FastAPI:
    app = FastAPI()
    install_problem_handlers(app)
    app.add_middleware(RequestContext)

    @app.api_route("/trace", methods=["GET", "POST"])
    async def trace() -> str:
        structlog.get_logger("test").info("working")
        structlog.contextvars.bind_contextvars(image_hash=KEY.image_hash)
        return current().traceparent

    return app


async def ask(method: str = "GET", path: str = "/trace", **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(application())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, headers=headers)


async def test_the_callers_trace_is_kept() -> None:
    assert (await ask(traceparent=TRACEPARENT)).json() == TRACEPARENT


@pytest.mark.parametrize(
    "wrong",
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
async def test_a_malformed_trace_is_replaced(wrong: str) -> None:
    trace = (await ask(traceparent=wrong)).json()
    assert trace != wrong
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", trace)


def test_a_later_versions_trace_is_read_as_ours() -> None:
    assert parsed_traceparent("01" + TRACEPARENT[2:] + "-more") == TRACEPARENT


async def test_with_a_project_lines_name_the_trace_as_cloud_logging_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("api", "json", "info", "a-project")
    await ask("POST", traceparent=TRACEPARENT)
    await ask("POST", traceparent=TRACEPARENT[:-1] + "0")
    logged = [line for line in lines(capsys) if line["message"] == "request"]
    assert [line["logging.googleapis.com/trace_sampled"] for line in logged] == [True, False]
    for line in logged:
        trace = "projects/a-project/traces/0af7651916cd43dd8448eb211c80319c"
        assert line["logging.googleapis.com/trace"] == trace
        assert line["logging.googleapis.com/spanId"] == "b7ad6b7169203331"


def test_without_a_request_there_is_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    configure("api", "json", "info", "a-project")
    structlog.get_logger("test").info("starting")
    (line,) = lines(capsys)
    assert not [name for name in line if "trace" in name]


async def test_a_request_ends_in_one_line_with_its_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("api", "json", "info")
    await ask("POST", traceparent=TRACEPARENT)
    working, request = [line for line in lines(capsys) if line["message"] != "HTTP Request"]
    assert working["trace"] == request["trace"] == TRACEPARENT[3:35]
    assert request["message"] == "request"
    assert (request["method"], request["path"], request["status"]) == ("POST", "/trace", 200)
    assert request["milliseconds"] >= 0
    # What a handler learns on the way is on the closing line too.
    assert request["image_hash"] == KEY.image_hash


async def test_reads_that_succeed_are_quiet_and_those_that_fail_are_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("api", "json", "info")
    await ask("GET")
    await ask("GET", "/nowhere")
    requests = [line for line in lines(capsys) if line["message"] == "request"]
    assert [line["status"] for line in requests] == [404]


async def test_one_requests_context_is_not_the_nexts(capsys: pytest.CaptureFixture[str]) -> None:
    configure("api", "json", "info")
    await ask("POST")
    await ask("POST")
    working = [line for line in lines(capsys) if line["message"] == "working"]
    assert len(working) == 2
    assert all("image_hash" not in line for line in working)
