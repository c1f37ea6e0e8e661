"""Logs: two formats with the same fields, and the image's hash on every line about an image."""

import asyncio
import errno
import io
import logging
from collections.abc import Iterator

import pytest
import structlog

from core.domain.records import RecordKey
from core.observability import logs
from core.observability.logs import image_context
from core.observability.tracing import make_current, parent_from, unrecorded_span
from tests.support.logs import ExclusiveFile, configure, lines, restored_logging

KEY = RecordKey("public", "a" * 64, "colours@0123456789ab")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    with restored_logging():
        yield


def test_json_lines_have_the_fields_of_cloud_logging(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_lines_about_unauthenticated_requests_are_limited() -> None:
    now = [1000.0]
    limit = logs.LimitUnauthenticated(lambda: now[0])

    def written(event: str, status: int = 401) -> dict[str, object] | None:
        try:
            return dict(limit(None, "info", {"event": event, "status": status}))
        except structlog.DropEvent:
            return None

    kept = [written("request") for _ in range(logs.MAX_401_LINES + 5)]
    assert kept[logs.MAX_401_LINES :] == [None] * 5
    assert None not in kept[: logs.MAX_401_LINES]
    assert written("request refused") is not None
    assert all(written("request", 403) for _ in range(100))
    now[0] += 60
    assert written("request") == {"event": "request", "status": 401, "omitted_before": 5}
    assert written("request") == {"event": "request", "status": 401}


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_failure_to_write_a_line_is_ignored(
    log_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", FullDisk())
    monkeypatch.setattr("sys.stderr", FullDisk())
    configure("api", log_format, "info")
    structlog.get_logger("test").info("accepted")
    logging.getLogger("uvicorn.error").info("Started")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_lines_of_several_threads_do_not_mix(
    log_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of line is one write, under the same lock."""
    file = ExclusiveFile()
    monkeypatch.setattr("sys.stdout", file)
    configure("api", log_format, "info")
    structlog.get_logger("test").info("accepted")
    logging.getLogger("uvicorn.error").info("Started")
    logs.write_lines("first\nsecond")
    assert [
        word in line
        for word, line in zip(
            ("accepted", "Started", "first", "second"), file.getvalue().splitlines(), strict=True
        )
    ] == [True] * 4


def test_lines_of_the_standard_library_have_the_same_fields(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("api", "json", "info")
    logging.getLogger("uvicorn.error").info("Started on port %d", 8080)
    logging.getLogger("httpx").info("a connection")
    (line,) = lines(capsys)
    assert line["message"] == "Started on port 8080"
    assert line["severity"] == "INFO"
    assert line["service"] == "api"


def test_console_lines_have_the_same_values(capsys: pytest.CaptureFixture[str]) -> None:
    configure("api", "console", "info")
    structlog.get_logger("test").info("accepted", bytes=3)
    shown = capsys.readouterr().out
    assert "accepted" in shown
    assert "bytes=3" in shown


@pytest.mark.parametrize(("level", "expected"), [("debug", 3), ("info", 2), ("error", 0)])
def test_level_is_the_lowest_severity_that_is_logged(
    level: str, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("api", "json", level)
    log = structlog.get_logger("test")
    log.debug("one")
    log.info("two")
    log.warning("three")
    assert len(lines(capsys)) == expected


def test_exceptions_are_structured(capsys: pytest.CaptureFixture[str]) -> None:
    configure("api", "json", "info")
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger("test").exception("failed")
    (line,) = lines(capsys)
    assert line["severity"] == "ERROR"
    assert line["exception"][0]["exc_type"] == "ValueError"


async def test_every_line_in_an_image_context_has_the_hash(
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


@pytest.mark.parametrize("sampled", [True, False])
def test_lines_name_the_trace_as_cloud_logging_does(
    sampled: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("api", "json", "info", "a-project")
    make_current(unrecorded_span(parent_from(f"{TRACEPARENT[:-1]}{int(sampled)}")))
    structlog.get_logger("test").info("working")
    (line,) = lines(capsys)
    assert line["trace"] == TRACEPARENT[3:35]
    name = f"projects/a-project/traces/{TRACEPARENT[3:35]}"
    assert line["logging.googleapis.com/trace"] == name
    assert line["logging.googleapis.com/spanId"] == TRACEPARENT[36:52]
    assert line["logging.googleapis.com/trace_sampled"] is sampled


def test_lines_outside_a_request_name_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    configure("api", "json", "info", "a-project")
    structlog.get_logger("test").info("starting")
    (line,) = lines(capsys)
    assert not [name for name in line if "trace" in name]
