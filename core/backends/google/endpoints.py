"""Addresses of Google's services and the credentials for them.

This is the only module in which `emulator` and `gcp` differ. Emulators use plain text and no
credentials. Google Cloud uses application default credentials:
https://cloud.google.com/docs/authentication/adc
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import google.auth
import grpc.aio
import requests
import requests.adapters
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import DefaultCredentialsError
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage
from google.cloud.datastore_v1.services.datastore.transports import DatastoreGrpcAsyncIOTransport
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport

from core.backends.data_folder import opened_folder
from core.backends.google.blobs import THREADS, Links
from core.backends.google.signed_links import IamLinks, LocalLinks
from core.backends.links import LinkSigner, shared_secret
from core.clock import Clock
from core.errors import Unavailable
from core.settings import Settings

DEMO_PROJECT = "demo-glimpse"
DATASTORE_HOST = "datastore.googleapis.com"
PUBSUB_HOST = "pubsub.googleapis.com"
STORAGE_URL = "https://storage.googleapis.com"
IAM_URL = "https://iamcredentials.googleapis.com"
SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)

# By default gRPC waits up to two minutes between tries to connect. A service that is back should be
# used within a second. Message sizes are unlimited, as in Google's own clients.
CHANNEL_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Otherwise all channels to one address share one connection, and fail together.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True)
class Endpoints:
    """Addresses and credentials of one process. Without `credentials` it uses plain text."""

    project: str
    credentials: Credentials | None
    datastore_host: str
    pubsub_host: str
    storage_url: str
    links: Links
    local_links: LinkSigner | None

    def datastore_channel(self) -> grpc.aio.Channel:
        return self._channel(DatastoreGrpcAsyncIOTransport, self.datastore_host)

    def pubsub_channel(self) -> grpc.aio.Channel:
        return self._channel(PublisherGrpcAsyncIOTransport, self.pubsub_host)

    def storage_client(self) -> storage.Client:
        """A client with as many connections as the blob store has threads. Blocks."""
        return _storage_client(self.project, self.credentials, self.storage_url, THREADS)

    def _channel(self, transport: Any, host: str) -> grpc.aio.Channel:
        if self.credentials is None:
            return grpc.aio.insecure_channel(host, options=CHANNEL_OPTIONS)
        return transport.create_channel(
            host, credentials=self.credentials, options=CHANNEL_OPTIONS, scopes=SCOPES
        )


async def open_endpoints(settings: Settings, clock: Clock) -> Endpoints:
    """The endpoints for `BACKEND`. Raises Unavailable without credentials or a project."""
    make = _cloud if settings.backend == "gcp" else _emulators
    return await asyncio.to_thread(make, settings, clock)


def bucket_client(settings: Settings, connections: int) -> storage.Client:
    """A client for buckets other than the backend's, for any `BACKEND`. Blocks.

    Raises Unavailable without credentials. Reading objects needs no project.
    """
    if settings.emulated_buckets:
        return _storage_client(DEMO_PROJECT, None, settings.storage_emulator_host, connections)
    credentials, project = _default_credentials()
    return _storage_client(project, credentials, STORAGE_URL, connections)


def authorized_session(credentials: Credentials | None, connections: int) -> AuthorizedSession:
    """An HTTP session that keeps at most `connections` connections."""
    session = AuthorizedSession(credentials or AnonymousCredentials())
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(pool_connections=2, pool_maxsize=connections))
    return session


class _Adapter(requests.adapters.HTTPAdapter):
    """Reads the body of an error response at once, which frees its connection.

    Google's client leaves it unread and keeps the connection while it retries. A few threads that
    get errors together would hold all connections, and each would wait for another's.
    """

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        response = super().send(*args, **kwargs)
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            _ = response.content
        return response


def _storage_client(
    project: str | None, credentials: Credentials | None, url: str, connections: int
) -> storage.Client:
    return storage.Client(
        project=project,
        credentials=credentials or AnonymousCredentials(),
        client_options={"api_endpoint": url},
        _http=authorized_session(credentials, connections),
    )


def default_credentials(project: str) -> tuple[Credentials, str]:
    """Application default credentials, and `project` or else the project that they name. Blocks.

    Raises Unavailable without credentials or a project.
    """
    credentials, default_project = _default_credentials()
    project = project or default_project or ""
    if not project:
        raise Unavailable("The credentials name no project: set GOOGLE_CLOUD_PROJECT.")
    return credentials, project


def _default_credentials() -> tuple[Credentials, str | None]:
    try:
        credentials, project = google.auth.default(scopes=SCOPES)
    except DefaultCredentialsError as error:
        raise Unavailable(
            "There are no Google credentials. See docs/operations/google-cloud.md."
        ) from error
    return credentials, project


def _emulators(settings: Settings, clock: Clock) -> Endpoints:
    with opened_folder(settings.data_dir):
        signer = LinkSigner(shared_secret(settings.data_dir / "link.key"), settings.public_url)
    return Endpoints(
        project=settings.google_cloud_project or DEMO_PROJECT,
        credentials=None,
        datastore_host=settings.datastore_emulator_host,
        pubsub_host=settings.pubsub_emulator_host,
        storage_url=settings.storage_emulator_host,
        links=LocalLinks(signer, clock),
        local_links=signer,
    )


def _cloud(settings: Settings, clock: Clock) -> Endpoints:
    credentials, project = default_credentials(settings.google_cloud_project)
    return Endpoints(
        project=project,
        credentials=credentials,
        datastore_host=DATASTORE_HOST,
        pubsub_host=PUBSUB_HOST,
        storage_url=STORAGE_URL,
        links=IamLinks(
            credentials,
            authorized_session(credentials, IamLinks.THREADS),
            settings.bucket,
            iam_url=IAM_URL,
            storage_url=STORAGE_URL,
        ),
        local_links=None,
    )
