"""Where spans go: `open_tracer` is the one place that chooses.

Everything is imported when it is needed, so that `TRACES=off` loads nothing of OpenTelemetry.
"""

from core.observability.tracing import NO_TRACER, Tracer
from core.settings import Settings


def open_tracer(settings: Settings, service: str) -> Tracer:
    """Opens the tracer that `TRACES` names, for the service `api` or `worker`. Blocks.

    Raises Unavailable without Google credentials, ValueError for an invalid `OTEL_…` variable.
    """
    if settings.traces == "off":
        return NO_TRACER
    from core.observability.trace_export import ExportingTracer, otlp_tracer

    if settings.traces == "otlp":
        return otlp_tracer(service)
    from core.backends.google.traces import open_exporter

    exporter, resource = open_exporter(settings.google_cloud_project)
    return ExportingTracer(service, exporter, resource)
