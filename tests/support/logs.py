"""Logs as a process writes them, for the time of a test."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from core.observability.logs import configure_logging
from core.observability.tracing import NOWHERE, make_current


@asynccontextmanager
async def json_logs(service: str, least: str = "info") -> AsyncIterator[None]:
    """Lines in JSON on what is the standard output now; what is global is given back."""
    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    configure_logging(service, "json", least)
    # Loggers of modules must not be tied to one test's captured output.
    structlog.configure(cache_logger_on_first_use=False)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.configure(**configuration)
        structlog.contextvars.clear_contextvars()
        make_current(NOWHERE)
