"""Cloud Trace, by its own OTLP endpoint: the way that Google recommends over its old exporter.

https://cloud.google.com/trace/docs/migrate-to-otlp-endpoints. The account needs
`roles/telemetry.tracesWriter`, the project the Telemetry and the Cloud Trace API.
"""

import google.auth
from google.auth.credentials import Credentials
from google.auth.exceptions import DefaultCredentialsError
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from core.backends.google.endpoints import SCOPES, authorized_session
from core.errors import Unavailable

ENDPOINT = "https://telemetry.googleapis.com/v1/traces"
REQUEST = 5.0  # seconds


def open_exporter(project: str) -> tuple[OTLPSpanExporter, dict[str, str]]:
    """The exporter, and what the resource has to say. Blocks. Raises Unavailable."""
    try:
        credentials, own_project = google.auth.default(scopes=SCOPES)
    except DefaultCredentialsError as error:
        raise Unavailable("There are no Google credentials.") from error
    project = project or own_project or ""
    if not project:
        raise Unavailable("The credentials name no project: set GOOGLE_CLOUD_PROJECT.")
    return exporter_for(credentials, ENDPOINT), {"gcp.project_id": project}


def exporter_for(credentials: Credentials, endpoint: str) -> OTLPSpanExporter:
    """An exporter whose every request bears a token of `credentials`, refreshed when it is due."""
    session = authorized_session(credentials, connections=1)
    return OTLPSpanExporter(endpoint=endpoint, session=session, timeout=REQUEST)
