"""Spans that are recorded, and sent in the background by OpenTelemetry's SDK over OTLP/HTTP.

Imported only where `TRACES` asks for it. A full queue drops spans, a collector that does not answer
costs a line in the log: neither holds up a request.
"""

import os
import threading
import uuid
from contextlib import AbstractContextManager
from typing import ClassVar

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from core.observability.tracing import (
    Attributes,
    Inside,
    Kind,
    Span,
    Step,
    is_sampled,
    new_traceparent,
    span_id,
    trace_id,
)

_KINDS = {
    Kind.INTERNAL: trace.SpanKind.INTERNAL,
    Kind.SERVER: trace.SpanKind.SERVER,
    Kind.PRODUCER: trace.SpanKind.PRODUCER,
    Kind.CONSUMER: trace.SpanKind.CONSUMER,
}
# Ours carries the context; the SDK's own notion of the current span is not used.
_NO_CONTEXT = otel_context.Context()


class RecordedSpan(Span):
    """`core.observability.tracing.Span` around one of the SDK's."""

    __slots__ = ("_otel", "_tracer")
    recording: ClassVar[bool] = True

    def __init__(self, tracer: trace.Tracer, otel: trace.Span) -> None:
        super().__init__(_traceparent(otel.get_span_context()))
        self._tracer = tracer
        self._otel = otel

    def child(self, name: str, kind: Kind) -> AbstractContextManager[Span]:
        here = trace.set_span_in_context(self._otel, _NO_CONTEXT)
        otel = self._tracer.start_span(name, here, _KINDS[kind])
        return Inside(_spanned(self._tracer, otel))

    def new_trace(self, name: str) -> AbstractContextManager[Span]:
        links = [trace.Link(self._otel.get_span_context())]
        otel = self._tracer.start_span(name, _NO_CONTEXT, links=links)
        return Inside(_spanned(self._tracer, otel))

    def past(self, step: Step) -> None:
        here = trace.set_span_in_context(self._otel, _NO_CONTEXT)
        together = {"glimpse.images": step.images} if step.images > 1 else {}
        span = self._tracer.start_span(step.name, here, attributes=together, start_time=step.began)
        span.end(step.ended)

    def rename(self, name: str) -> None:
        self._otel.update_name(name)

    def set(self, attributes: Attributes) -> None:
        self._otel.set_attributes(dict(attributes))

    def fail(self, reason: str) -> None:
        self._otel.set_attribute("error.type", reason)
        self._otel.set_status(trace.StatusCode.ERROR)

    def end(self) -> None:
        self._otel.end()


class ExportingTracer:
    """`core.observability.tracing.Tracer` that records as the sampler says.

    The sampler is the standard one, `OTEL_TRACES_SAMPLER`: by default a trace that somebody else
    began is recorded if they say so, and one that begins here always.
    """

    def __init__(self, service: str, exporter: SpanExporter, resource: Attributes) -> None:
        own: dict[str, str | int | float | bool] = {
            SERVICE_INSTANCE_ID: str(uuid.uuid4()),
            **resource,
        }
        if not os.environ.get("OTEL_SERVICE_NAME"):
            own[SERVICE_NAME] = f"glimpse-{service}"
        # Not at exit: that would wait for a collector without a bound.
        self._provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("glimpse")

    def begin(self, name: str, kind: Kind, traceparent: str, *, link: str = "") -> Span:
        here = _NO_CONTEXT
        if traceparent:
            here = trace.set_span_in_context(trace.NonRecordingSpan(_context(traceparent)), here)
        links = [trace.Link(_context(link))] if link else []
        otel = self._tracer.start_span(name, here, _KINDS[kind], links=links)
        return _spanned(self._tracer, otel)

    def close(self, seconds: float) -> None:
        # On a thread that ends with the process: the SDK's own bounds are longer than a stop's.
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(seconds)


def otlp_tracer(service: str) -> ExportingTracer:
    """A tracer that exports to the collector that the standard `OTEL_…` variables name."""
    return ExportingTracer(service, OTLPSpanExporter(), {})


def _spanned(tracer: trace.Tracer, otel: trace.Span) -> Span:
    """Not recorded: then its children need not be either, and cost nothing."""
    if otel.is_recording():
        return RecordedSpan(tracer, otel)
    return Span(_traceparent(otel.get_span_context()))


def _traceparent(context: trace.SpanContext) -> str:
    if not context.is_valid:
        return new_traceparent()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _context(traceparent: str) -> trace.SpanContext:
    return trace.SpanContext(
        int(trace_id(traceparent), 16),
        int(span_id(traceparent), 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(int(is_sampled(traceparent))),
    )
