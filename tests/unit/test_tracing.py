"""Trace context without an SDK, and spans with one."""

import asyncio
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN, SpanKind, StatusCode

from core.observability.tracing import (
    add_past_span,
    current_trace_id,
    current_traceparent,
    make_current,
    new_trace,
    parent_from,
    span,
    start_span,
    unrecorded_span,
)
from tests.support.tracing import recording

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = TRACEPARENT[3:35]


@pytest.fixture(autouse=True)
def _no_current_span() -> Iterator[None]:
    make_current(INVALID_SPAN)
    yield
    make_current(INVALID_SPAN)


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    """The spans that the test records."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with recording(provider):
        yield exporter
    provider.shutdown()


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (exported,) = exporter.get_finished_spans()
    return exported


def test_without_an_sdk_steps_continue_the_current_trace() -> None:
    assert (current_traceparent(), current_trace_id()) == ("", "")
    make_current(start_span("GET", SpanKind.SERVER, parent_from(TRACEPARENT)))
    with span("step") as child:
        assert not child.is_recording()
        assert current_traceparent() == TRACEPARENT
        assert current_trace_id() == TRACE_ID
    assert current_traceparent() == TRACEPARENT


def test_new_trace_without_an_sdk_keeps_its_ids() -> None:
    make_current(start_span("GET", SpanKind.SERVER))
    traceparent = current_traceparent()
    assert traceparent == current_traceparent()
    assert traceparent.split("-")[1] == current_trace_id()


def test_without_an_sdk_new_trace_is_another_one_for_its_context() -> None:
    make_current(unrecorded_span(parent_from(TRACEPARENT)))
    with new_trace("another"):
        assert current_trace_id() not in ("", TRACE_ID)
    assert current_trace_id() == TRACE_ID


def test_steps_are_children_of_the_current_span(exported: InMemorySpanExporter) -> None:
    server = start_span("GET", SpanKind.SERVER, parent_from(TRACEPARENT))
    make_current(server)
    with span("send", SpanKind.PRODUCER) as child:
        assert current_traceparent().startswith(
            f"00-{TRACE_ID}-{child.get_span_context().span_id:016x}"
        )
    sent = only(exported)
    assert (sent.name, sent.kind) == ("send", SpanKind.PRODUCER)
    assert sent.parent == server.get_span_context()
    assert sent.status.is_unset


def test_steps_of_a_trace_that_its_caller_does_not_record_are_not_recorded(
    exported: InMemorySpanExporter,
) -> None:
    make_current(start_span("GET", SpanKind.SERVER, parent_from(f"{TRACEPARENT[:-1]}0")))
    with span("step") as child:
        assert not child.is_recording()
        assert current_traceparent()[3:35] == TRACE_ID
        assert current_traceparent().endswith("-00")
    assert not exported.get_finished_spans()


def test_failed_step_has_the_type_of_the_exception_only(exported: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="private"), span("decode"):
        raise ValueError("private")
    failed = only(exported)
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, None)
    assert failed.attributes == {"error.type": "ValueError"}
    assert not failed.events


def test_cancelled_step_has_not_failed(exported: InMemorySpanExporter) -> None:
    with pytest.raises(asyncio.CancelledError), span("wait"):
        raise asyncio.CancelledError
    assert only(exported).status.is_unset


def test_new_trace_links_the_current_span(exported: InMemorySpanExporter) -> None:
    make_current(unrecorded_span(parent_from(TRACEPARENT)))
    with new_trace("reconcile record"):
        assert current_trace_id() != TRACE_ID
    root = only(exported)
    assert root.parent is None
    assert [f"{link.context.trace_id:032x}" for link in root.links] == [TRACE_ID]


def test_new_trace_outside_a_request_links_nothing(exported: InMemorySpanExporter) -> None:
    with new_trace("run job"):
        pass
    assert not only(exported).links


def test_past_step_keeps_its_times(exported: InMemorySpanExporter) -> None:
    make_current(start_span("process", SpanKind.CONSUMER))
    add_past_span("infer", 1_000, 3_000, images=4)
    past = only(exported)
    assert (past.name, past.start_time, past.end_time) == ("infer", 1_000, 3_000)
    assert past.attributes == {"glimpse.images": 4}
    assert past.parent == trace.get_current_span().get_span_context()
