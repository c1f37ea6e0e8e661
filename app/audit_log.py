"""The audit log: one line for each image that a client submits, written after the response.

A request puts an entry into a bounded queue. A thread renders the entries, and writes those of a
tenth of a second together: waking it for each entry would cost an upload a fifth of its time.
Problems of the output cost lines, which are counted, and never a response. These lines are written
at every `LOG_LEVEL`.
"""

import asyncio
import json
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from logging.handlers import QueueListener
from typing import Any, NamedTuple, Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter
from starlette.background import BackgroundTask
from starlette.responses import Response

from core.clock import Clock, rfc3339, utc_now
from core.domain.jobs import Job
from core.domain.principals import Principal
from core.domain.records import Record, Status
from core.observability.logs import write_lines
from core.observability.tracing import current_trace_id
from core.settings import Settings

log = structlog.get_logger(__name__)

CAPACITY = 10_000  # entries in the queue
GATHER_SECONDS = 0.1  # how long entries gather before they are written
BATCH = 1_000  # entries in one write
CLOSE_SECONDS = 2.0

Write = Callable[[str], object]


class Entry(NamedTuple):
    """One image in a request that was answered with a record. `seconds` is the response time.

    Entries of a `job` have no size: most of their images were uploaded before.
    """

    at: datetime
    tenant: str
    key: str
    image_hash: str
    model: str
    status: str
    cached: bool
    bytes: int
    seconds: float
    trace: str
    job: str = ""


class AuditLog:
    """The audit log of one process. `write` is called with each line, in the log's thread."""

    def __init__(
        self,
        settings: Settings,
        dropped: Counter,
        *,
        clock: Clock = utc_now,
        write: Write = write_lines,
        capacity: int = CAPACITY,
    ) -> None:
        self.clock = clock
        self._dropped = dropped
        self._output = _Output(write, dropped)
        as_json = settings.log_format == "json"
        self._output.setFormatter(_JsonFormatter(settings) if as_json else _TextFormatter())
        self._queue: queue.Queue[Entry | None] = queue.Queue(capacity)
        self._listener = _Listener(self._queue, self._output)
        self._added = 0

    def start(self) -> None:
        self._listener.start()

    def add(self, entry: Entry) -> None:
        """Put an entry into the queue. If the queue is full, the entry is counted and dropped."""
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self._dropped.inc()
        else:
            self._added += 1

    async def close(self) -> None:
        """Write the remaining entries. Gives up after `CLOSE_SECONDS`."""
        stopping = threading.Thread(target=self._listener.stop, daemon=True)
        stopping.start()
        await asyncio.to_thread(stopping.join, CLOSE_SECONDS)
        if stopping.is_alive():
            lost = self._added - self._output.finished
            self._dropped.inc(lost)
            log.error("audit lines lost", lines=lost, reason="the output is too slow")


class _Listener(QueueListener):
    """Hands entries to the output in batches."""

    def __init__(self, entries: "queue.Queue[Entry | None]", output: logging.Handler) -> None:
        super().__init__(entries, output)
        self._entries = entries
        self._closing = threading.Event()

    def dequeue(self, block: bool) -> Any:  # the base class declares a record
        """Return the next entries, or None after the last one."""
        first = self._entries.get()
        if first is None:
            return None
        self._closing.wait(GATHER_SECONDS)
        batch = [first]
        while len(batch) < BATCH:
            try:
                entry = self._entries.get_nowait()
            except queue.Empty:
                break
            if entry is None:
                self.enqueue_sentinel()
                break
            batch.append(entry)
        return batch

    def handle(self, record: Any) -> None:
        super().handle(logging.makeLogRecord({"msg": record}))
        for _ in record[1:]:  # the base class marks one as done
            self._entries.task_done()

    def stop(self) -> None:
        self._closing.set()
        super().stop()

    def enqueue_sentinel(self) -> None:
        self._entries.put(None)  # the base class does not wait for room in a full queue


class _Output(logging.Handler):
    def __init__(self, write: Write, dropped: Counter) -> None:
        super().__init__()
        self.finished = 0  # entries that are written or lost
        self._write = write
        self._dropped = dropped

    def emit(self, record: logging.LogRecord) -> None:
        count = len(_entries_in(record))
        try:
            self._write(self.format(record))
        except Exception as error:  # noqa: BLE001 - the thread must go on with the next lines
            self._dropped.inc(count)
            log.error("audit lines lost", lines=count, reason=type(error).__name__)
        finally:
            self.finished += count


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(self._line(entry) for entry in _entries_in(record))

    def _line(self, entry: Entry) -> str:
        fields = " ".join(f"{name}={value}" for name, value in _fields(entry).items())
        return f"{rfc3339(entry.at)} [audit    ] prediction {fields}"


class _JsonFormatter(logging.Formatter):
    """Renders as `core.observability.logs` does; its processor chain costs ten times as much."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._project = settings.google_cloud_project

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(self._line(entry) for entry in _entries_in(record))

    def _line(self, entry: Entry) -> str:
        line: dict[str, object] = {
            "message": "prediction",
            "log": "audit",
            "severity": "INFO",
            "time": rfc3339(entry.at),
            "service": "api",
            **_fields(entry),
        }
        if entry.trace:
            line["trace"] = entry.trace
            if self._project:
                line["logging.googleapis.com/trace"] = (
                    f"projects/{self._project}/traces/{entry.trace}"
                )
        return json.dumps(line)


def _entries_in(record: logging.LogRecord) -> list[Entry]:
    entries: object = record.msg
    assert isinstance(entries, list)
    return entries


def _fields(entry: Entry) -> dict[str, object]:
    fields: dict[str, object] = {
        "tenant": entry.tenant,
        "key": entry.key,
        "image_hash": entry.image_hash,
        "model": entry.model,
        "status": entry.status,
        "cached": entry.cached,
    }
    if entry.job:
        fields["job"] = entry.job
    else:
        fields["bytes"] = entry.bytes
    fields["milliseconds"] = round(1000 * entry.seconds, 1)
    return fields


class AuditedResult(Protocol):
    """What an audit line says of a result."""

    @property
    def image_hash(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def status(self) -> Status: ...


class _AuditTask(BackgroundTask):
    """Adds an entry after the response. It omits the inspection that Starlette's class makes."""

    def __init__(
        self,
        audit: AuditLog,
        began: float,
        values: tuple[Principal, "AuditedResult", bool, int, str],
    ) -> None:
        self._audit = audit
        self._began = began
        self._values = values

    async def __call__(self) -> None:
        principal, result, cached, size, trace = self._values
        audit = self._audit
        audit.add(
            Entry(
                audit.clock(),
                principal.tenant,
                principal.key_id,
                result.image_hash,
                result.model,
                result.status,
                cached,
                size,
                time.perf_counter() - self._began,
                trace,
            )
        )


def audited(
    response: Response,
    audit: AuditLog,
    principal: Principal,
    result: AuditedResult,
    *,
    cached: bool,
    size: int,
    began: float,
) -> Response:
    """Return `response`; after it is sent, an audit line is written.

    `cached`: the result existed before the upload. `size` is in bytes, `began` on the clock of
    `time.perf_counter`.
    """
    values = (principal, result, cached, size, current_trace_id())
    response.background = _AuditTask(audit, began, values)
    return response


def audited_job(
    response: Response,
    audit: AuditLog,
    principal: Principal,
    job: Job,
    images: Mapping[str, Record | None],
    *,
    began: float,
) -> Response:
    """Same as `audited`, with a line for each image that `job` was created for."""
    trace = current_trace_id()

    async def add() -> None:
        for image_hash, record in images.items():
            cached = record is not None and record.status.terminal and not record.may_retry
            status = Status.PENDING if record is None or record.may_retry else record.status
            entry = Entry(
                audit.clock(),
                principal.tenant,
                principal.key_id,
                image_hash,
                job.model,
                status,
                cached,
                0,
                time.perf_counter() - began,
                trace,
                job.key.id,
            )
            audit.add(entry)

    response.background = BackgroundTask(add)
    return response


def dropped_counter(registry: CollectorRegistry) -> Counter:
    return Counter(
        "glimpse_audit_lines_dropped",
        "Audit lines that were dropped: the queue was full, or the write failed",
        registry=registry,
    )


@asynccontextmanager
async def open_audit(settings: Settings, dropped: Counter, clock: Clock) -> AsyncIterator[AuditLog]:
    """Open the audit log. It writes every line before it closes."""
    audit = AuditLog(settings, dropped, clock=clock)
    audit.start()
    try:
        yield audit
    finally:
        await audit.close()
