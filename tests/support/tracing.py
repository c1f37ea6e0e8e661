"""Records the spans of a test's own process."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import INVALID_SPAN

from core.observability.tracing import TRACER, make_current


@contextmanager
def recording(provider: TracerProvider) -> Iterator[None]:
    """Record spans with `provider` for the duration of the context.

    OpenTelemetry's global provider can be set only once in a process, so this replaces the tracer.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRACER, "_real_tracer", provider.get_tracer("test"))
        try:
            yield
        finally:
            make_current(INVALID_SPAN)
