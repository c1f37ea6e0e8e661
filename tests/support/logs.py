"""Logs in the format of a process, for the duration of a test."""

import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import structlog
from opentelemetry.trace import INVALID_SPAN

from core.observability import logs
from core.observability.logs import configure_logging
from core.observability.tracing import make_current


class ExclusiveFile(io.StringIO):
    """A file that takes whole lines only, and only from a thread that holds the lock."""

    def write(self, text: str) -> int:
        assert text.endswith("\n")
        assert logs._output_lock.locked()
        return super().write(text)


@contextmanager
def restored_logging() -> Iterator[None]:
    """Restore the global state of logging and tracing."""
    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    debug = logs._Lines.debug
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.configure(**configuration)
        logs._Lines.debug = debug
        structlog.contextvars.clear_contextvars()
        make_current(INVALID_SPAN)


def configure(service: str, log_format: str, level: str, project: str = "") -> None:
    """Log as a process does, but without loggers of modules that keep the output of one test."""
    configure_logging(service, log_format, level, project)
    structlog.configure(cache_logger_on_first_use=False)


@asynccontextmanager
async def json_logs(service: str, level: str = "info") -> AsyncIterator[None]:
    """Write JSON lines to the current standard output for the duration of the context."""
    with restored_logging():
        configure(service, "json", level)
        yield


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The JSON lines that were written since the last call."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
