"""The metrics of the API."""

import asyncio
from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from core.domain.jobs import JobStatus
from core.domain.records import Status
from core.errors import GlimpseError
from core.observability.metrics import BacklogCollector, FreeSpaceCollector, jobs_ended
from core.ports import BlobStore, Publisher

log = structlog.get_logger(__name__)

TRANSPORTS = ("sse", "websocket")
BACKLOG_SECONDS = 1.0  # longest wait of a scrape for the queue's depth, and for the free space


class ApiMetrics:
    """The API's metrics in the registry of one application."""

    def __init__(self, registry: CollectorRegistry) -> None:
        uploads = Counter(
            "glimpse_uploads",
            "Accepted images, by the record's status in the response",
            ["status", "cache"],
            registry=registry,
        )
        # Created in advance: Prometheus does not see the first increase of a new series.
        self._misses = {status: uploads.labels(str(status), "miss") for status in Status}
        self._hits = {Status.SUCCESS: uploads.labels(str(Status.SUCCESS), "hit")}
        # Jobs end here only by cancellation; the worker counts the others.
        self._cancelled = jobs_ended(registry).labels(JobStatus.CANCELLED.value)
        self.streams = StreamMetrics(registry)
        self._queue = BacklogCollector()
        registry.register(self._queue)
        self._disk = FreeSpaceCollector()
        registry.register(self._disk)

    def uploaded(self, status: Status, *, cached: bool) -> None:
        """Count an upload. `cached`: the result came from the process's cache."""
        (self._hits if cached else self._misses)[status].inc()

    def job_cancelled(self) -> None:
        """Count a job that a client cancelled. Call once for each job."""
        self._cancelled.inc()

    async def refresh_backlog(self, publisher: Publisher) -> None:
        """Look up the queue's depth. On failure, the metric is omitted."""
        try:
            async with asyncio.timeout(BACKLOG_SECONDS):
                self._queue.backlog = await publisher.backlog()
        except (GlimpseError, TimeoutError) as error:
            self._queue.backlog = None
            log.warning("queue depth unknown", reason=str(error))

    async def refresh_free_space(self, blobs: BlobStore) -> None:
        """Look up the free space. On failure, and if storage grows, the metric is omitted."""
        try:
            async with asyncio.timeout(BACKLOG_SECONDS):
                self._disk.free = await blobs.free_bytes()
        except (GlimpseError, TimeoutError) as error:
            self._disk.free = None
            log.warning("free space unknown", reason=str(error))


class StreamMetrics:
    """Open streams, and the lookups of their pollers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._open = Gauge("glimpse_live_streams", "Open streams", ["transport"], registry=registry)
        self._lookups = Counter(
            "glimpse_live_lookups",
            "Lookups of the records or jobs that open streams are about",
            ["what"],
            registry=registry,
        )
        self._keys = Counter(
            "glimpse_live_lookup_keys", "Keys in these lookups", ["what"], registry=registry
        )
        for transport in TRANSPORTS:
            self._open.labels(transport)

    def opened(self, transport: str) -> None:
        self._open.labels(transport).inc()

    def closed(self, transport: str) -> None:
        self._open.labels(transport).dec()

    def lookup_counter(self, topic: str) -> Callable[[int], None]:
        """Return a function that counts one lookup and its number of keys."""
        lookups, keys = self._lookups.labels(topic), self._keys.labels(topic)

        def count(number: int) -> None:
            lookups.inc()
            keys.inc(number)

        return count
