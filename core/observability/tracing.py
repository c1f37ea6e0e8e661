"""Trace context and spans, through OpenTelemetry's API: https://www.w3.org/TR/trace-context/.

Each request has a trace context: log lines name it and messages carry it. Spans are recorded only
after `record_with`, which `core.observability.setup` calls if `TRACES` asks for it. Until then,
this module creates no span: those of the API record nothing, but cost a sixth of what the worker
does for an image beside the model.
"""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    TracerProvider,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

NO_PARENT = Context()
_UNRECORDED = nullcontext(trace.INVALID_SPAN)  # it has no state, so every `span` can return it
_PROPAGATOR = TraceContextTextMapPropagator()
_ids_lock = threading.Lock()


class _NewTrace(NonRecordingSpan):
    """The first span of a trace that is not recorded.

    It gets its ids when something needs them. Most requests neither log a line nor publish.
    """

    def __init__(self) -> None:
        self._ids: SpanContext | None = None

    def get_span_context(self) -> SpanContext:
        if self._ids is None:
            with _ids_lock:
                if self._ids is None:  # no other thread was faster
                    self._ids = _new_ids()
        return self._ids

    def __repr__(self) -> str:
        return f"_NewTrace({self.get_span_context()!r})"


class _Recorder:
    tracer: Tracer | None = None


_recorder = _Recorder()


def record_with(provider: TracerProvider | None) -> None:
    """Record the spans of this process with `provider` from now on, or no spans."""
    _recorder.tracer = None if provider is None else provider.get_tracer("glimpse")


def records_spans() -> bool:
    """Whether this process records spans."""
    return _recorder.tracer is not None


def parent_from(traceparent: str) -> Context:
    """The context that `traceparent` describes. `NO_PARENT` if it is not well-formed."""
    return _PROPAGATOR.extract({"traceparent": traceparent}, NO_PARENT)


def start_span(
    name: str, kind: SpanKind, parent: Context = NO_PARENT, links: Sequence[Link] = ()
) -> Span:
    """Start a span that continues `parent` or, without one, a new trace.

    Its context is valid even if nothing records it. The caller ends the span.
    """
    tracer = _recorder.tracer
    if tracer is None:
        return unrecorded_span(parent)
    started = tracer.start_span(name, parent, kind, links=links)
    return started if started.get_span_context().is_valid else _NewTrace()


def unrecorded_span(parent: Context) -> Span:
    """The span of `parent` or, without one, of a new trace. It records nothing."""
    if parent is NO_PARENT:
        return _NewTrace()
    span_context = trace.get_current_span(parent).get_span_context()
    return NonRecordingSpan(span_context) if span_context.is_valid else _NewTrace()


def make_current(current: Span) -> None:
    """Make `current` the current span until the task ends or calls this function again.

    The span stays current after its end, so the log line about a request and background tasks
    belong to the request's trace.
    """
    context.attach(trace.set_span_in_context(current, NO_PARENT))


def span(name: str, kind: SpanKind = SpanKind.INTERNAL) -> AbstractContextManager[Span]:
    """A child of the current span for the duration of the context."""
    tracer = _recorder.tracer
    return _UNRECORDED if tracer is None else _use(tracer.start_span(name, kind=kind))


@contextmanager
def new_trace(name: str) -> Iterator[Span]:
    """The first span of a new trace for the duration of the context. Links the current span."""
    here = trace.get_current_span().get_span_context()
    links = [Link(here)] if here.is_valid else []
    with _use(start_span(name, SpanKind.INTERNAL, links=links)) as root:
        yield root


def add_past_span(name: str, began: int, ended: int, images: int = 1) -> None:
    """Record a child of the current span that ended in another process.

    Times are in Unix nanoseconds. `images` is the number of images that it processed together.
    """
    tracer = _recorder.tracer
    if tracer is None:
        return
    attributes = {"glimpse.images": images} if images > 1 else None
    tracer.start_span(name, attributes=attributes, start_time=began).end(ended)


def fail(failed: Span, reason: str) -> None:
    """Mark `failed` as failed. `reason` is an identifier, such as the type of an exception."""
    failed.set_attribute("error.type", reason)
    failed.set_status(StatusCode.ERROR)


def current_traceparent() -> str:
    """The current trace context as the value of a `traceparent` header, or an empty string."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def current_trace_id() -> str:
    """The current trace id in hex, or an empty string."""
    span_context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(span_context.trace_id) if span_context.is_valid else ""


def _new_ids() -> SpanContext:
    # Not cryptographic: the ids must be unique, but they are no secret.
    trace_id, span_id = random.getrandbits(128) or 1, random.getrandbits(64) or 1
    return SpanContext(trace_id, span_id, is_remote=False)


@contextmanager
def _use(started: Span) -> Iterator[Span]:
    """Make `started` current and end it. An exception marks it as failed.

    The span gets the type of the exception only: its message may contain private data.
    """
    with trace.use_span(
        started, end_on_exit=True, record_exception=False, set_status_on_exception=False
    ):
        try:
            yield started
        except Exception as error:
            fail(started, type(error).__name__)
            raise
