"""Where spans go: `open_tracer_provider` is the one place that chooses.

The SDK is imported when it is needed, so `TRACES=off` does not load it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


def open_tracer_provider(settings: Settings, service: str) -> TracerProvider | None:
    """The tracer provider of the service `api` or `worker`, or None with `TRACES=off`. Blocks.

    Raises Unavailable without Google credentials, ValueError for an invalid `OTEL_…` variable.
    """
    if settings.traces == "off":
        return None
    from core.observability.trace_export import otlp_provider, tracer_provider

    if settings.traces == "otlp":
        return otlp_provider(service)
    from core.backends.google.traces import open_exporter

    exporter, resource = open_exporter(settings.google_cloud_project)
    return tracer_provider(service, exporter, resource)
