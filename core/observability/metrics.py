"""Metrics of a service for Prometheus: https://prometheus.io/docs/practices/naming/.

Each application has its own registry, so several can run in one process. The page
docs/operations/metrics-and-traces.md lists names and labels. A test compares it with the services.
"""

import asyncio
from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from core.ports import Backlog

# Creation times would double the number of series. Nothing uses them.
disable_created_metrics()  # type: ignore[no-untyped-call]

METRICS_PATH = "/metrics"
UNMATCHED = "unmatched"  # the label for a request without a route
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "_OTHER"  # clients can send any method, and each would add a series
LAG_INTERVAL = 2.0  # seconds between two samples of the event loop
# Seconds, from a cached response to the longest wait for a result, and of the loop's delays.
REQUEST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class ServiceMetrics:
    """The metrics that both services have. Each service adds more to `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.in_flight = 0
        self._requests = Counter(
            "glimpse_http_requests",
            "Requests answered",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "glimpse_http_request_duration_seconds",
            "Time to answer, waiting for a result included",
            ["method", "route"],
            buckets=REQUEST_BUCKETS,
            registry=self.registry,
        )
        in_flight = Gauge(
            "glimpse_http_requests_in_flight", "Requests being answered", registry=self.registry
        )
        in_flight.set_function(lambda: self.in_flight)
        self._lag = Histogram(
            "glimpse_event_loop_lag_seconds",
            "How late the event loop came to a task that was due",
            buckets=LAG_BUCKETS,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        # By method, route, and status: `labels` costs ten times as much as this lookup.
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that has its response. `route` is the template, never the path."""
        if method not in _METHODS:
            method = _OTHER
        children = self._children.get((method, route, status))
        if children is None:
            children = self._children[method, route, status] = (
                self._requests.labels(method, route, str(status)),
                self._seconds.labels(method, route),
            )
        children[0].inc()
        children[1].observe(seconds)

    async def sample_event_loop_lag(self) -> None:
        """Sample the delay of the event loop until this task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            self._lag.observe(max(0.0, loop.time() - due))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All series in the format that the Accept header prefers, and its media type. Blocks."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type


def jobs_ended(registry: CollectorRegistry) -> Counter:
    """A counter for both services. One process ends each job, so the sum counts every job once."""
    return Counter(
        "glimpse_jobs_ended", "Jobs that ended here, by how", ["status"], registry=registry
    )


class BacklogCollector:
    """The size of the queue at its last lookup. Without one, it exposes no series."""

    def __init__(self) -> None:
        self.backlog: Backlog | None = None

    def collect(self) -> Iterator[Metric]:
        if self.backlog is None:
            return
        yield GaugeMetricFamily(
            "glimpse_queue_messages", "Messages not delivered yet", self.backlog.messages
        )
        yield GaugeMetricFamily(
            "glimpse_queue_oldest_message_age_seconds",
            "Time since the oldest of them was published",
            self.backlog.oldest_age,
        )


class FreeSpaceCollector:
    """The free space of the disk at its last lookup. Without one, it exposes no series."""

    def __init__(self) -> None:
        self.free: int | None = None

    def collect(self) -> Iterator[Metric]:
        if self.free is not None:
            yield GaugeMetricFamily(
                "glimpse_disk_free_bytes", "Free space on the disk of DATA_DIR", self.free
            )
