"""What a service counts, for Prometheus: https://prometheus.io/docs/practices/naming/.

One registry an application, so that several may live in one process. Names and labels stand in
docs/operations/metrics-and-traces.md, which a test compares with what the services answer.
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

# Times of creation would double the number of series, and nothing asks for them.
disable_created_metrics()  # type: ignore[no-untyped-call]

METRICS_PATH = "/metrics"
UNMATCHED = "unmatched"  # the route of a request that has none
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "_OTHER"  # clients may invent methods, and each would be a series
LAG_INTERVAL = 0.5  # seconds between two looks at the event loop
# Seconds. Of answers, from a cached one to the longest that may wait; and of the loop's delays.
REQUEST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class ServiceMetrics:
    """What both services count. Each adds its own to `registry`."""

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
        # By method, route and status: looking a child up by its labels costs ten times as much.
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request. `route` is the template, never the path."""
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

    async def watch_event_loop(self) -> None:
        """Sample the loop's lag, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            self._lag.observe(max(0.0, loop.time() - due))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Every series in the format that the Accept header prefers, and its media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type


def jobs_ended(registry: CollectorRegistry) -> Counter:
    """Both services end jobs, each one in one of them: the sum over all processes is right."""
    return Counter(
        "glimpse_jobs_ended", "Jobs that ended here, by how", ["status"], registry=registry
    )


class BacklogCollector:
    """The queue's depth as it was last looked up, and nothing where it is not known."""

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
