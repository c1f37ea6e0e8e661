"""Structured logs: JSON in Cloud Logging's field names, or readable lines.

Whatever is bound to the context (`bind_image`) is on every line until the request ends, so each
line about one image carries its hash; and each line carries the trace it belongs to. Fields:
https://cloud.google.com/logging/docs/structured-logging
"""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TextIO, cast

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

from core.domain.messages import ClassifyImage, Message
from core.domain.records import RecordKey
from core.observability.tracing import current, is_sampled, span_id, trace_id


class _BestEffort:
    """A text file on which no failure to write is anybody's: that line is lost, and nothing else.

    A full disk or a closed pipe behind standard output must not fail what was logged about. The
    standard library's handlers think so too.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._file.write(text)
        return 0

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()


def configure_logging(
    service: str, log_format: str, level: str, project: str = "", file: TextIO | None = None
) -> None:
    """Send structlog's lines, and the standard library's, to standard output in one format.

    Or to `file`: a command's standard output is its answer. With a Google Cloud `project`, lines in
    JSON name their trace the way Cloud Logging links it.
    """
    file = file or sys.stdout
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        with_trace,
    ]
    final: list[Processor]
    if log_format == "json":
        shared.append(_with_service(service))
        if project:
            shared.append(_with_cloud_trace(project))
        final = [
            # Without local variables: they hold images and signed links.
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            _cloud_logging_names,
            structlog.processors.JSONRenderer(),
        ]
    else:
        final = [
            structlog.dev.ConsoleRenderer(
                colors=file.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _BestEffort(file))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(file)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    logging.basicConfig(level=max(number, logging.INFO), handlers=[handler], force=True)
    # Every request has our own line; libraries' chatter about connections has no reader.
    for name in ("uvicorn.access", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def image_context(key: RecordKey) -> Iterator[None]:
    """Every line logged inside carries the image's hash and tenant."""
    with structlog.contextvars.bound_contextvars(**_names(key)):
        yield


def bind_image(key: RecordKey) -> None:
    """As `image_context`, until the request ends: its own closing line carries the image too.

    `RequestContext` clears it when the next request begins.
    """
    structlog.contextvars.bind_contextvars(**_names(key))


@contextmanager
def message_context(message: Message) -> Iterator[None]:
    """As `image_context`, of what a message is about: an image, a job, or a job's item."""
    with structlog.contextvars.bound_contextvars(**_names_of(message)):
        yield


def bind_message(message: Message) -> None:
    """As `bind_image`, of what a message is about."""
    structlog.contextvars.bind_contextvars(**_names_of(message))


def _names(key: RecordKey) -> dict[str, str]:
    return {"image_hash": key.image_hash, "tenant": key.tenant}


def _names_of(message: Message) -> Mapping[str, str | int]:
    if not isinstance(message, ClassifyImage):
        return {"job": message.job, "tenant": message.tenant}
    if not message.job:
        return _names(message.key)
    return {**_names(message.key), "job": message.job, "position": message.position}


def with_trace(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """structlog's processor that names the trace of the line."""
    traceparent = current().traceparent
    if traceparent:
        event["trace"] = trace_id(traceparent)
    return event


def _with_cloud_trace(project: str) -> Processor:
    def add(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        traceparent = current().traceparent
        if traceparent:
            trace = f"projects/{project}/traces/{trace_id(traceparent)}"
            event["logging.googleapis.com/trace"] = trace
            event["logging.googleapis.com/spanId"] = span_id(traceparent)
            event["logging.googleapis.com/trace_sampled"] = is_sampled(traceparent)
        return event

    return add


def _with_service(service: str) -> Processor:
    def add(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    return add


def _cloud_logging_names(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    event["message"] = event.pop("event", "")
    event["severity"] = str(event.pop("level", "info")).upper()
    # As text it is `time`; Cloud Logging expects an object under `timestamp`.
    event["time"] = event.pop("timestamp")
    return event
