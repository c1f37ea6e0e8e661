"""The exporter of Cloud Trace against a collector of ours; and what a resource says."""

import pytest
from google.oauth2.credentials import Credentials
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from core.backends.google.traces import exporter_for
from core.observability.trace_export import ExportingTracer
from core.observability.tracing import Kind, Span, current, make_current, span
from tests.support.collector import Collector

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_each_export_to_cloud_trace_bears_a_token_and_the_project() -> None:
    with Collector() as collector:
        credentials = Credentials("a-token")
        exporter = exporter_for(credentials, f"{collector.url}/v1/traces")
        tracer = ExportingTracer("api", exporter, {"gcp.project_id": "a-project"})
        tracer.begin("GET", Kind.SERVER, TRACEPARENT).end()
        tracer.close(10)
        (seen,) = collector.spans
        (headers,) = collector.headers
        (resource,) = collector.resources
    assert headers["authorization"] == "Bearer a-token"
    assert resource["gcp.project_id"] == "a-project"
    assert resource["service.name"] == "glimpse-api"
    assert resource["service.instance.id"]
    assert (seen.trace, seen.parent) == (TRACEPARENT[3:35], TRACEPARENT[36:52])


def test_steps_of_a_trace_that_is_not_recorded_are_none() -> None:
    tracer = ExportingTracer("api", OTLPSpanExporter("http://127.0.0.1:9/v1/traces"), {})
    here = tracer.begin("GET", Kind.SERVER, TRACEPARENT[:-1] + "0")
    assert not here.recording
    assert here.traceparent[3:35] == TRACEPARENT[3:35]
    assert here.traceparent.endswith("-00")
    make_current(here)
    with span("step") as step:
        assert step is here
    tracer.close(10)


def test_a_step_that_raises_is_failed_by_the_errors_name_alone() -> None:
    with Collector() as collector:
        exporter = exporter_for(Credentials("t"), f"{collector.url}/v1/traces")
        tracer = ExportingTracer("worker", exporter, {})
        here = tracer.begin("process", Kind.CONSUMER, "")
        make_current(here)
        with pytest.raises(ValueError, match="private"), span("decode"):
            raise ValueError("private")
        assert current() is here
        here.end()
        tracer.close(10)
        step, _ = sorted(collector.spans, key=lambda seen: seen.name)
    assert step.failed
    assert step.attributes == {"error.type": "ValueError"}
    assert step.parent == here.traceparent[36:52]


def test_a_span_that_nobody_records_does_nothing() -> None:
    here = Span(TRACEPARENT)
    make_current(here)
    with span("step") as step:
        step.set({"a": 1})
        step.fail("b")
        assert step.traceparent == TRACEPARENT
    with current().new_trace("another") as other:
        assert other.traceparent[3:35] != TRACEPARENT[3:35]
        assert current() is other
    assert current() is here
