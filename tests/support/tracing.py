"""Records the spans of a test's own process."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import INVALID_SPAN

from core.observability.tracing import make_current, record_with


@contextmanager
def recording(provider: TracerProvider) -> Iterator[None]:
    """Record spans with `provider` for the duration of the context."""
    record_with(provider)
    try:
        yield
    finally:
        record_with(None)
        make_current(INVALID_SPAN)
