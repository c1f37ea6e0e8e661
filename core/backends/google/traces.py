"""Exports spans to the OTLP endpoint of Cloud Trace, which replaces Google's older exporter.

https://cloud.google.com/trace/docs/migrate-to-otlp-endpoints. The account needs
`roles/telemetry.tracesWriter`. The project needs the Telemetry API and the Cloud Trace API.
"""

from google.auth.credentials import Credentials
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from core.backends.google.endpoints import authorized_session, default_credentials

ENDPOINT = "https://telemetry.googleapis.com/v1/traces"
REQUEST = 5.0  # seconds


def open_exporter(project: str) -> tuple[OTLPSpanExporter, dict[str, str]]:
    """The exporter, and the attributes that its resource needs. Blocks. Raises Unavailable."""
    credentials, project = default_credentials(project)
    return exporter_for(credentials, ENDPOINT), {"gcp.project_id": project}


def exporter_for(credentials: Credentials, endpoint: str) -> OTLPSpanExporter:
    """An exporter whose requests carry a token of `credentials`, which it refreshes in time."""
    session = authorized_session(credentials, connections=1)
    return OTLPSpanExporter(endpoint=endpoint, session=session, timeout=REQUEST)
