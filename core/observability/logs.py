"""Structured logs: JSON with Cloud Logging's field names, or readable lines.

Values that `bind_image` and `bind_message` add are on every line until the request ends. So each
line about an image has its hash. Each line also names its trace. Fields:
https://cloud.google.com/logging/docs/structured-logging
"""

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TextIO, cast

import structlog
from opentelemetry import trace
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

from core.domain.messages import ClassifyImage, EmbedImage, MakeThumbnail, Message
from core.domain.records import ImageKey, RecordKey
from core.observability.tracing import current_trace_id

MAX_401_LINES = 20  # a minute, for each event


class LimitUnauthenticated:
    """Processor for structlog that limits the lines about requests without a valid key (401).

    Otherwise they could fill the log. The first line of a minute has the number of lines with the
    same event that were omitted before it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends = 0.0
        self._written: Counter[str] = Counter()
        self._omitted: Counter[str] = Counter()

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Raises structlog.DropEvent for a line that is omitted."""
        if event.get("status") != 401:
            return event
        now, name = self._clock(), event["event"]
        if now >= self._ends:
            self._ends = now + 60
            self._written.clear()
        if self._written[name] >= MAX_401_LINES:
            self._omitted[name] += 1
            raise structlog.DropEvent
        self._written[name] += 1
        if omitted := self._omitted.pop(name, 0):
            event["omitted_before"] = omitted
        return event


class _Lines:
    debug = True  # as structlog does before its configuration


def writes_debug_lines() -> bool:
    """Whether `configure_logging` was called with the level `debug`, or not yet."""
    return _Lines.debug


# Threads share the output, and a long write to a pipe is not atomic.
_output_lock = threading.Lock()


def write_lines(lines: str) -> None:
    """Write one or more whole lines to standard output, never inside a line of another thread.

    Raises OSError if the output fails.
    """
    with _output_lock:
        sys.stdout.write(lines + "\n")
        sys.stdout.flush()


class _BestEffort:
    """A text file that ignores failures to write. Only the log line is lost.

    A full disk or a closed pipe must not fail the operation that logs. The handlers of the standard
    library do the same.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with suppress(OSError), _output_lock:
            return self._file.write(text)
        return 0

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()


def configure_logging(
    service: str, log_format: str, level: str, project: str = "", file: TextIO | None = None
) -> None:
    """Write the log lines of structlog and the standard library to standard output, in one format.

    Commands pass another `file`, because their standard output is their result. With a Google Cloud
    `project`, JSON lines name their trace in the form that Cloud Logging links.
    """
    file = file or sys.stdout
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        LimitUnauthenticated(),
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_trace,
    ]
    final: list[Processor]
    if log_format == "json":
        shared.append(_add_service(service))
        if project:
            shared.append(_add_cloud_trace(project))
        final = [
            # Without local variables, which may contain images and signed links.
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            _rename_for_cloud_logging,
            structlog.processors.JSONRenderer(),
        ]
    else:
        final = [
            structlog.dev.ConsoleRenderer(
                colors=file.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    output = cast(TextIO, _BestEffort(file))
    _Lines.debug = number <= logging.DEBUG
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        # `PrintLogger` writes the end of a line by itself, so that another line may come between.
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    logging.basicConfig(level=max(number, logging.INFO), handlers=[handler], force=True)
    # Each request has a line of `RequestContext`, so those of the libraries add nothing.
    for name in ("uvicorn.access", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def image_context(key: RecordKey) -> Iterator[None]:
    """Add the image's hash and tenant to every line that is logged in this context."""
    with structlog.contextvars.bound_contextvars(**_fields(key)):
        yield


def bind_image(key: RecordKey | ImageKey) -> None:
    """As `image_context`, until the request ends. The line about the request has the image too.

    `RequestContext` clears it at the start of the next request.
    """
    structlog.contextvars.bind_contextvars(**_fields(key))


@contextmanager
def message_context(message: Message) -> Iterator[None]:
    """As `image_context`, for the subject of a message: an image, a job, or an item of a job."""
    with structlog.contextvars.bound_contextvars(**_fields_of(message)):
        yield


def bind_message(message: Message) -> None:
    """As `bind_image`, for the subject of a message."""
    structlog.contextvars.bind_contextvars(**_fields_of(message))


def _fields(key: RecordKey | ImageKey) -> dict[str, str]:
    return {"image_hash": key.image_hash, "tenant": key.tenant}


def _fields_of(message: Message) -> Mapping[str, str | int]:
    if isinstance(message, MakeThumbnail):
        return {"image_hash": message.image_hash, "tenant": message.tenant}
    if not isinstance(message, ClassifyImage | EmbedImage):
        return {"job": message.job, "tenant": message.tenant}
    if not message.job:
        return _fields(message.key)
    return {**_fields(message.key), "job": message.job, "position": message.position}


def add_trace(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Processor for structlog that adds the current trace to a log line."""
    if trace_id := current_trace_id():
        event["trace"] = trace_id
    return event


def _add_cloud_trace(project: str) -> Processor:
    def add(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            trace_id = trace.format_trace_id(context.trace_id)
            event["logging.googleapis.com/trace"] = f"projects/{project}/traces/{trace_id}"
            event["logging.googleapis.com/spanId"] = trace.format_span_id(context.span_id)
            event["logging.googleapis.com/trace_sampled"] = context.trace_flags.sampled
        return event

    return add


def _add_service(service: str) -> Processor:
    def add(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    return add


def _rename_for_cloud_logging(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    event["message"] = event.pop("event", "")
    event["severity"] = str(event.pop("level", "info")).upper()
    # Cloud Logging expects text in `time`, and an object in `timestamp`.
    event["time"] = event.pop("timestamp")
    return event
