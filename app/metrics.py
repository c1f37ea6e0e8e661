"""What the API alone counts."""

import asyncio
from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from core.domain.jobs import JobStatus
from core.domain.records import Status
from core.errors import GlimpseError
from core.observability.metrics import BacklogCollector, jobs_ended
from core.ports import Publisher

log = structlog.get_logger(__name__)

TRANSPORTS = ("sse", "websocket")
BACKLOG_SECONDS = 1.0  # how long a scrape may wait for the queue's depth


class ApiMetrics:
    """On one application's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        uploads = Counter(
            "glimpse_uploads",
            "Images taken in, by the record's status in the answer",
            ["status", "cache"],
            registry=registry,
        )
        # All of them at once: a series that is there from the start shows its first increase.
        self._misses = {status: uploads.labels(str(status), "miss") for status in Status}
        self._hits = {Status.SUCCESS: uploads.labels(str(Status.SUCCESS), "hit")}
        # Clients cancel; whatever else ends a job is the worker's.
        self._cancelled = jobs_ended(registry).labels(JobStatus.CANCELLED.value)
        self.live = LiveMetrics(registry)
        self._queue = BacklogCollector()
        registry.register(self._queue)

    def uploaded(self, status: Status, *, cached: bool) -> None:
        """Count an upload that was answered with a record, out of the process's cache or not."""
        (self._hits if cached else self._misses)[status].inc()

    def job_cancelled(self) -> None:
        """Count a job that a client has cancelled, once."""
        self._cancelled.inc()

    async def look_at(self, publisher: Publisher) -> None:
        """Look the queue's depth up. Raises nothing: what cannot be known is not shown."""
        try:
            async with asyncio.timeout(BACKLOG_SECONDS):
                self._queue.backlog = await publisher.backlog()
        except (GlimpseError, TimeoutError) as error:
            self._queue.backlog = None
            log.warning("queue depth unknown", reason=str(error))


class LiveMetrics:
    """Open streams, and what it costs to look for changes on their behalf."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._open = Gauge(
            "glimpse_live_streams", "Streams that are open", ["transport"], registry=registry
        )
        self._lookups = Counter(
            "glimpse_live_lookups",
            "Look-ups of everything that is watched, or has just come",
            ["what"],
            registry=registry,
        )
        self._keys = Counter(
            "glimpse_live_lookup_keys", "Records that they asked for", ["what"], registry=registry
        )
        for transport in TRANSPORTS:
            self._open.labels(transport)

    def opened(self, transport: str) -> None:
        self._open.labels(transport).inc()

    def closed(self, transport: str) -> None:
        self._open.labels(transport).dec()

    def looking_for(self, what: str) -> Callable[[int], None]:
        """A function that counts one look-up, and the keys in it."""
        lookups, keys = self._lookups.labels(what), self._keys.labels(what)

        def looked(number: int) -> None:
            lookups.inc()
            keys.inc(number)

        return looked
