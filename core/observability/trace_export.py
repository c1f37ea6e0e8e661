"""OpenTelemetry's SDK, which records spans and sends them in the background over OTLP/HTTP.

Imported only if `TRACES` asks for it. If its queue is full, the SDK drops spans. If the collector
does not answer, it logs a line. Neither delays a request.
"""

import os
import threading
import uuid
from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter


def tracer_provider(
    service: str, exporter: SpanExporter, resource: Mapping[str, str]
) -> TracerProvider:
    """A provider for the service `api` or `worker`. `resource` describes where it runs.

    Raises ValueError for an invalid `OTEL_…` variable. `OTEL_TRACES_SAMPLER` selects what is
    recorded: by default, a trace from a caller if the caller records it, and every new trace.
    """
    attributes = {SERVICE_INSTANCE_ID: str(uuid.uuid4()), **resource}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        attributes[SERVICE_NAME] = f"glimpse-{service}"
    # `shut_down` is called instead of a shutdown at exit, which would wait without a limit.
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def otlp_provider(service: str) -> TracerProvider:
    """A provider that exports to the collector that `OTEL_EXPORTER_OTLP_ENDPOINT` names."""
    return tracer_provider(service, OTLPSpanExporter(), {})


def shut_down(provider: TracerProvider, seconds: float) -> None:
    """Send the remaining spans for up to `seconds`. Blocks."""
    # A daemon thread ends with the process: the SDK may wait longer than a stop may take.
    closing = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
    closing.start()
    closing.join(seconds)
