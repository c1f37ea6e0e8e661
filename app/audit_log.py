"""Who had which image classified: one line a prediction, written after the answer.

A request adds an entry to a bounded queue and goes on. A task takes the entries out, and a thread
writes them, many at once. Whatever goes wrong there costs lines and never an answer: lines that are
lost are counted. Unlike other lines these are written at every LOG_LEVEL.
"""

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import NamedTuple

import structlog
from prometheus_client import CollectorRegistry, Counter
from starlette.background import BackgroundTask
from starlette.responses import Response

from core.clock import Clock, rfc3339, utc_now
from core.concurrency import in_background
from core.domain.jobs import Job
from core.domain.principals import Principal
from core.domain.records import Record, Status
from core.observability.tracing import current_trace_id
from core.settings import Settings

log = structlog.get_logger(__name__)

CAPACITY = 10_000  # entries that wait
BATCH = 1_000
PAUSE = 0.1  # seconds in which entries gather
CLOSE_SECONDS = 2.0

Write = Callable[[str], object]


class Entry(NamedTuple):
    """One image that was given and answered with a record. `seconds` are those of the answer.

    Of a `job`'s image nobody says how large it is: most often it came before.
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
    """One process's. `write` gets whole lines, in a thread."""

    def __init__(
        self,
        settings: Settings,
        model: str,
        dropped: Counter,
        *,
        clock: Clock = utc_now,
        write: Write | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        self.model = model
        self.clock = clock
        self._json = settings.log_format == "json"
        self._project = settings.google_cloud_project
        self._dropped = dropped
        # structlog's own logger for a file shares its lock with those of all other lines.
        self._write = write or structlog.PrintLogger(sys.stdout).msg
        self._capacity = capacity
        self._entries: deque[Entry] = deque()
        self._filled = asyncio.Event()

    def add(self, entry: Entry) -> None:
        """Take an entry in; where there is no room for it, it is counted and lost."""
        if len(self._entries) >= self._capacity:
            self._dropped.inc()
            return
        self._entries.append(entry)
        self._filled.set()

    async def run(self) -> None:
        """Write what comes, until cancelled."""
        while True:
            await self._filled.wait()
            await asyncio.sleep(PAUSE)
            await self.flush()

    async def flush(self) -> None:
        """Write everything that waits. Raises nothing: what cannot be written is lost."""
        self._filled.clear()
        while self._entries:
            batch = [self._entries.popleft() for _ in range(min(BATCH, len(self._entries)))]
            try:
                await asyncio.to_thread(self._write_lines, batch)
            except Exception as error:  # noqa: BLE001 - a log that fails must fail nobody
                self._dropped.inc(len(batch))
                log.error("audit lines lost", lines=len(batch), reason=type(error).__name__)

    async def close(self) -> None:
        """Write what is left, unless that takes too long."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.flush()
        except TimeoutError:
            self._dropped.inc(len(self._entries))
            log.error("audit lines lost", lines=len(self._entries), reason="too slow")

    def _write_lines(self, batch: list[Entry]) -> None:
        render = self._as_json if self._json else _as_text
        self._write("\n".join(render(entry) for entry in batch))

    def _as_json(self, entry: Entry) -> str:
        """Render as `core.observability.logs` does; its processor chain costs ten times as much."""
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


def _as_text(entry: Entry) -> str:
    fields = " ".join(f"{name}={value}" for name, value in _fields(entry).items())
    return f"{rfc3339(entry.at)} [audit    ] prediction {fields}"


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


class _AfterAnswer(BackgroundTask):
    """What a response runs once it is sent. Without the inspection that Starlette's own makes."""

    def __init__(
        self,
        audit: AuditLog,
        began: float,
        facts: tuple[Principal, str, Status, bool, int, str],
    ) -> None:
        self._audit = audit
        self._began = began
        self._facts = facts

    async def __call__(self) -> None:
        principal, image_hash, status, cached, size, trace = self._facts
        audit = self._audit
        audit.add(
            Entry(
                audit.clock(),
                principal.tenant,
                principal.key_id,
                image_hash,
                audit.model,
                status,
                cached,
                size,
                time.perf_counter() - self._began,
                trace,
            )
        )


def audited(
    response: Response,
    audit: AuditLog | None,
    principal: Principal,
    image_hash: str,
    status: Status,
    *,
    cached: bool,
    size: int,
    began: float,
) -> Response:
    """`response`, which leaves an audit line once it is sent.

    `cached`: the result was there before the upload. `size` in bytes; `began` on the clock of
    `time.perf_counter`.
    """
    if audit is not None:
        facts = (principal, image_hash, status, cached, size, current_trace_id())
        response.background = _AfterAnswer(audit, began, facts)
    return response


def audited_job(
    response: Response,
    audit: AuditLog | None,
    principal: Principal,
    job: Job,
    images: Mapping[str, Record | None],
    *,
    began: float,
) -> Response:
    """As `audited`: a line for each of the images that `job` was created for."""
    if audit is not None:
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
        "Audit lines that were lost: too many at once, or not to be written",
        registry=registry,
    )


@asynccontextmanager
async def open_audit(
    settings: Settings, model: str, dropped: Counter, clock: Clock = utc_now
) -> AsyncIterator[AuditLog | None]:
    """The audit log, or None where the settings say that there is none."""
    if not settings.audit_log:
        yield None
        return
    audit = AuditLog(settings, model, dropped, clock=clock)
    try:
        async with in_background(audit.run()):
            yield audit
    finally:
        await audit.close()
