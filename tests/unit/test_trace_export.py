"""The export of spans to Cloud Trace, against a collector of the test, and what a resource says."""

import threading
import time

from google.oauth2.credentials import Credentials
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from core.backends.google.traces import exporter_for
from core.observability.trace_export import shut_down, tracer_provider
from core.observability.tracing import parent_from, start_span
from tests.support.collector import Collector
from tests.support.tracing import recording

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_export_to_cloud_trace_has_a_token_and_the_project() -> None:
    with Collector() as collector:
        exporter = exporter_for(Credentials("a-token"), f"{collector.url}/v1/traces")
        provider = tracer_provider("api", exporter, {"gcp.project_id": "a-project"})
        with recording(provider):
            start_span("GET", SpanKind.SERVER, parent_from(TRACEPARENT)).end()
        shut_down(provider, 10)
        (seen,) = collector.spans
        (headers,) = collector.headers
        (resource,) = collector.resources
    assert headers["authorization"] == "Bearer a-token"
    assert resource["gcp.project_id"] == "a-project"
    assert resource["service.name"] == "glimpse-api"
    assert resource["service.instance.id"]
    assert (seen.trace, seen.parent) == (TRACEPARENT[3:35], TRACEPARENT[36:52])


class StuckExporter(InMemorySpanExporter):
    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def shutdown(self) -> None:
        self.released.wait(60)


def test_shut_down_does_not_wait_longer_than_it_may() -> None:
    exporter = StuckExporter()
    provider = tracer_provider("worker", exporter, {})
    began = time.monotonic()
    shut_down(provider, 0.05)
    assert time.monotonic() - began < 30
    exporter.released.set()
