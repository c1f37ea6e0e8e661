"""Every setting, typed and validated at start. Names are environment variables or lines of `.env`.

`compose.settings_docs` writes docs/settings.md and `.env.example` from this class; `tests/docs`
compares them. What no operator has a reason to change is a constant beside its use.
"""

import difflib
import os
from collections.abc import Iterable
from datetime import timedelta
from email.utils import parseaddr
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from core.bundles.location import BUCKET_NAME, BucketFolder
from core.domain.channels import NOTIFICATIONS, Channel
from core.domain.key_tokens import MIN_SECRET_BYTES
from core.domain.policy import (
    BACKOFF_RATIO,
    MAX_ACK_DEADLINE,
    MIN_ACK_DEADLINE,
    MIN_PUBSUB_ATTEMPTS,
    STALE_SECONDS,
    DeliveryPolicy,
    JobPolicy,
)
from core.domain.rate_limits import MAX_DAILY_QUOTA, Rate
from core.domain.records import MAX_LABELS
from core.hosts import LOOPBACK_HOSTS, host_of, is_loopback
from core.imaging.limits import PixelLimits
from core.outbound.mail_address import domain_of
from core.outbound.mail_server import MailServer

DEFAULT_BUNDLE = Path(__file__).resolve().parents[1] / "models" / "default"
ENV_FILE = ".env"

# Bytes that a form may add to the image: boundaries, part headers, and fields that are ignored.
FORM_OVERHEAD = 64 * 1024


def _model_uri(uri: str) -> str:
    """`uri`; ValueError if it is neither a path nor gs://bucket/folder."""
    BucketFolder.of(uri)
    return uri


def _key_secrets(secret: SecretStr | None) -> SecretStr | None:
    """`secret`; ValueError if one of its parts is too short."""
    parts = [] if secret is None else secret.get_secret_value().split(",")
    if any(len(part.strip().encode()) < MIN_SECRET_BYTES for part in parts):
        raise ValueError(f"each secret needs at least {MIN_SECRET_BYTES} characters")
    return secret


ModelUri = Annotated[str, AfterValidator(_model_uri)]
Port = Annotated[int, Field(ge=1, le=65535)]
# A century: a cleanup subtracts a retention from the current date, and no date is before year 1.
MOST_DAYS = 36_500
DAY_SECONDS = 24 * 3600
DailyQuota = Annotated[int, Field(ge=0, le=MAX_DAILY_QUOTA)]
_DELIVERY = DeliveryPolicy()
# Of at most 255 characters, some are the channel's name.
# https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names
_RESOURCE_PREFIX = r"^[A-Za-z][A-Za-z0-9._~%+-]{2,199}$"
_HOST_PORT = r"^[^\s/]+:[0-9]{1,5}$"
_URL = r"^https?://[^\s?#]*[^\s/?#]$"

# Variables in `.env` that `docker compose` and OpenTelemetry's SDK read, not Glimpse.
FOREIGN_PREFIXES = ("COMPOSE_", "DOCKER_", "OTEL_")

# Settings of earlier versions, and what replaces each.
REMOVED = {
    "ACK_DEADLINE_SECONDS": "a delivery may take twice LEASE_SECONDS, from 10 to 600 seconds",
    "AUDIT_LOG": "the API always writes audit lines. A log system can drop those with log=audit",
    "CLASSIFY_SECONDS": "an image may take two thirds of LEASE_SECONDS, and at least 20 seconds",
    "DEAD_LETTER_RETENTION_SECONDS": "RETENTION_DAYS applies to jobs and dead letters",
    "DUPLICATE_WAIT_SECONDS": "it is always 5 seconds",
    "HEADER_SECONDS": "it is always 10 seconds",
    "JOB_REFRESH_SECONDS": "it is always half a second",
    "JOB_RETENTION_SECONDS": "RETENTION_DAYS applies to jobs and dead letters",
    "K_SERVICE": "Cloud Run sets it in the environment",
    "KEY_CACHE_SECONDS": "a process always caches a verified key for 30 seconds",
    "LINK_SECONDS": "a signed link is always valid for 15 minutes",
    "MAX_CONNECTIONS": "the limit is MAX_STREAMS and 1,000 more",
    "MAX_JPEG_PIXELS": "a JPEG may have 15/8 as many pixels as MAX_IMAGE_PIXELS",
    "MAX_UPLOADS_IN_FLIGHT": "MAX_UPLOAD_BYTES_IN_FLIGHT bounds the memory of uploads",
    "MAX_WAIT_SECONDS": "`Prefer: wait` always allows up to 30 seconds",
    "MIN_BACKOFF_SECONDS": "the first wait is MAX_BACKOFF_SECONDS divided by 300",
    "MIN_UPLOAD_BYTES_PER_SECOND": "an upload always needs 16 KiB a second after 10 seconds",
    "MODEL_CACHE_DIR": "DATA_DIR holds the bundles from `gs://`, in `model-cache`",
    "NAMESPACE_PREFIX": "DATASTORE_DATABASE separates installations that share a project",
    "NOTIFICATION_ATTEMPTS": "a notification has four times DELIVERY_ATTEMPTS",
    "NOTIFICATION_CONCURRENCY": "it is always 16",
    "NOTIFICATION_MAX_BACKOFF_SECONDS": "a notification waits five times as long as an image",
    "NOTIFICATION_MIN_BACKOFF_SECONDS": "a notification waits five times as long as an image",
    "PUSH_CONCURRENCY": "the queue delivers 16 images at once, or twice WORKER_CONCURRENCY",
    "PUSH_KEYS_URL": "the worker always asks Google for the keys",
    "RESULT_CACHE_ENTRIES": "a process always caches up to 10,000 results",
    "RESULT_CACHE_SECONDS": "a process always caches a result for 60 seconds",
    "RESULT_MAX_AGE_SECONDS": "caches always keep a finished result for one hour",
    "RETENTION_SECONDS": "an undelivered message is always kept for 7 days",
    "SCHEDULE_SECONDS": "it is always one second",
    "SHUTDOWN_SECONDS": "a stopping service always has 8 seconds",
    "SIGNING_SERVICE_ACCOUNT": "use credentials that impersonate the account",
    "SLOW_WAIT_SECONDS": "`/what/slow` always waits up to 20 seconds",
    "STALE_SECONDS": "what makes no progress is always reconciled after 10 minutes",
    "STREAM_SECONDS": "a stream of live updates always ends after 55 minutes",
    "UPLOAD_GRACE_SECONDS": "an upload always needs 16 KiB a second after 10 seconds",
    "USAGE_RETENTION_DAYS": "usage counts are always kept for 400 days",
    "WEBHOOK_SECONDS": "a receiver always has 15 seconds to answer",
}


class Settings(BaseSettings):
    """The configuration of one process. The description of a field is its documentation."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_ignore_empty=True,
        dotenv_filtering="only_existing",  # `load_settings` names the unknown ones
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,  # no wait and no retention can be either
    )

    # --- Where Glimpse runs -----------------------------------------------------------------------
    backend: Annotated[
        Literal["embedded", "emulator", "gcp"],
        Field(
            description="Where records, images, and messages are kept: `embedded`, `emulator`, or "
            "`gcp`. If it is not set, `make run` chooses"
        ),
    ] = "embedded"
    host: Annotated[
        str,
        Field(
            description="Address that both services listen on. If other machines can reach it, the "
            "API requires API_KEYS and the worker requires PUSH_AUTH, or both require ALLOW_PUBLIC"
        ),
    ] = "127.0.0.1"
    api_port: Annotated[Port, Field(description="Port of the API")] = 8080
    worker_port: Annotated[Port, Field(description="Port of the worker")] = 8081
    port: Annotated[
        Port | None,
        Field(description="Port of a service that runs alone, API or worker. Cloud Run sets it"),
    ] = None
    data_dir: Annotated[
        Path, Field(description="Folder for the data that Glimpse keeps on this machine")
    ] = Path(".data")
    public_url: Annotated[
        str,
        Field(
            pattern=r"^(https?://.*[^/])?$",
            description="Base URL of the links in responses. If empty, links are relative",
        ),
    ] = ""

    # --- Models -----------------------------------------------------------------------------------
    model_uri: Annotated[
        ModelUri,
        Field(description="Model bundle that labels images: a folder, or `gs://bucket/folder`"),
    ] = str(DEFAULT_BUNDLE)
    extra_model_uris: Annotated[
        tuple[ModelUri, ...],
        NoDecode,
        Field(
            description="Other bundles that requests may name as `model`, comma-separated. The API "
            "and the worker need the same ones"
        ),
    ] = ()
    loaded_models: Annotated[
        int, Field(ge=1, description="Number of bundles that the worker keeps in memory")
    ] = 2
    labels_per_image: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_LABELS,
            description="Number of labels in a response, unless the request sets `labels`. Results "
            f"are stored with {MAX_LABELS}",
        ),
    ] = 5
    min_confidence: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Labels and categories below this confidence are left out of responses, "
            "unless the request sets `min_confidence`",
        ),
    ] = 0
    thumbnails: Annotated[
        bool | None,
        Field(
            description="Whether the worker makes a thumbnail of each image, and the API serves "
            "it. If it is not set: true, except with BACKEND=gcp"
        ),
    ] = None
    worker_concurrency: Annotated[
        int,
        Field(ge=0, description="Images that a worker classifies at once. 0: one for each core"),
    ] = 0

    # --- Access -----------------------------------------------------------------------------------
    api_keys: Annotated[
        Literal["off", "required"],
        Field(description="Whether the API requires a key: `off` or `required`"),
    ] = "off"
    allow_public: Annotated[
        bool,
        Field(
            description="Serve other machines without authentication, because a component in front "
            "of Glimpse authenticates callers"
        ),
    ] = False
    key_secret: Annotated[
        SecretStr | None,
        Field(
            description="Secret for hashing keys, with at least 32 characters. To rotate it, put a "
            "new one and a comma before it. If empty, Glimpse creates one in DATA_DIR",
        ),
        AfterValidator(_key_secrets),
    ] = None
    rate_limit: Annotated[
        str,
        Field(
            pattern=r"^(off|[1-9][0-9]{0,8}/(second|minute|hour))$",
            description="Requests that a tenant may send each `second`, `minute`, or `hour`, or "
            "`off`. Each further image of a request counts as one more",
        ),
    ] = "600/minute"
    daily_quota: Annotated[
        DailyQuota,
        Field(
            description="Requests and further images that a tenant may send each day (UTC). 0: no "
            "limit"
        ),
    ] = 0
    docs: Annotated[bool, Field(description="Whether to serve `/docs` and `/openapi.json`")] = True
    page: Annotated[bool, Field(description="Whether to serve the web page at `/`")] = True
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="Origins whose pages may call the API, comma-separated. `*`: every origin"
        ),
    ] = ()
    cors_headers: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="Request headers that pages of CORS_ORIGINS may send beside those of "
            "Glimpse, comma-separated. `*`: every header"
        ),
    ] = ("baggage", "sentry-trace", "tracestate", "X-Requested-With", "Cache-Control")
    allowed_hosts: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="Hosts that the API answers for, comma-separated. If empty: this machine's "
            "own names and the host of PUBLIC_URL if HOST is a loopback address, else every host"
        ),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="Proxies whose `X-Forwarded-For` header is trusted, comma-separated. "
            "`*`: every proxy"
        ),
    ] = ()
    push_auth: Annotated[
        Literal["off", "oidc", "iam"] | None,
        Field(
            description="How the worker authenticates pushes. `off`: by the secret in DATA_DIR, "
            "which local queues send. `oidc`: by a signed Google identity token. `iam`, on Cloud "
            "Run only: the same, but Cloud Run's own check replaces a signature that Cloud "
            "Run has removed. If it is not set, `iam` with BACKEND=gcp, and `off` otherwise"
        ),
    ] = None
    push_audience: Annotated[
        str, Field(description="Audience that the token of a push must have, exactly")
    ] = ""
    push_service_account: Annotated[
        str, Field(description="E-mail address of the service account that pushes")
    ] = ""

    # --- Limits -----------------------------------------------------------------------------------
    max_image_bytes: Annotated[int, Field(ge=1, description="Largest image, in bytes")] = (
        20 * 1024 * 1024
    )
    max_image_pixels: Annotated[
        int,
        Field(
            ge=1,
            description="Largest image, in pixels (width times height). A JPEG may have 15/8 as "
            "many. A classifier process needs 20 bytes for each while it decodes an image",
        ),
    ] = 64_000_000
    image_urls: Annotated[
        bool,
        Field(
            description="Whether clients may send the URL of an image, which the API fetches from "
            "public addresses"
        ),
    ] = True
    max_batch_bytes: Annotated[
        int, Field(ge=1, description="Largest batch of images, in bytes, packed or unpacked")
    ] = 256 * 1024 * 1024
    max_upload_bytes_in_flight: Annotated[
        int, Field(ge=1, description="Bytes of uploads that one API process holds in memory")
    ] = 128 * 1024 * 1024
    max_streams: Annotated[
        int,
        Field(
            ge=0,
            description="Streams of live updates that an API process serves at once. Requests "
            "have 1,000 other connections",
        ),
    ] = 2000
    keep_alive_seconds: Annotated[
        int,
        Field(
            ge=1,
            le=3600,
            description="Time that an idle connection stays open. It must be longer than the idle "
            "time of a proxy in front: docs/operations/proxies.md",
        ),
    ] = 65

    # --- Retention --------------------------------------------------------------------------------
    retention_days: Annotated[
        float,
        Field(
            gt=0,
            le=MOST_DAYS,
            description="Days that a finished job, its items, and a dead letter are kept",
        ),
    ] = 30

    # --- Delivery ---------------------------------------------------------------------------------
    delivery_attempts: Annotated[
        int,
        Field(
            description="Deliveries of a message before it becomes a dead letter. A notification "
            "has four times as many, and at most 100"
        ),
    ] = _DELIVERY.attempts
    max_backoff_seconds: Annotated[
        float,
        Field(
            description="Longest wait between deliveries. The first wait is a 300th of it, and "
            "each wait doubles. A notification waits five times as long, and at most 600 s"
        ),
    ] = _DELIVERY.max_backoff
    lease_seconds: Annotated[
        float,
        Field(
            description="Time that a worker holds an image before another may claim it. "
            "Classification may take two thirds of it, and at least 20 seconds. A delivery may "
            "take twice as long, and from 10 to 600 seconds"
        ),
    ] = _DELIVERY.lease

    # --- Notifications ----------------------------------------------------------------------------
    webhook_allow_private: Annotated[
        bool,
        Field(description="Whether webhooks may use private addresses and plain HTTP"),
    ] = False
    smtp_url: Annotated[
        SecretStr,
        Field(
            description="Mail server: `smtp://user:password@host:587` (with STARTTLS if the server "
            "offers it) or `smtps://…:465` (TLS). If empty, no e-mail is sent"
        ),
    ] = SecretStr("")
    email_from: Annotated[str, Field(description="Sender of e-mail. SMTP_URL requires it")] = ""
    email_allowed_domains: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="Domains that e-mail may go to, comma-separated. If empty, the domain of "
            "EMAIL_FROM. `*`: every domain"
        ),
    ] = ()

    # --- Google Cloud -----------------------------------------------------------------------------
    google_cloud_project: Annotated[
        str,
        Field(
            description="Project. If empty, that of the credentials, or `demo-glimpse` with "
            "BACKEND=emulator"
        ),
    ] = ""
    datastore_database: Annotated[
        str, Field(description="Datastore database. If empty, the default database")
    ] = ""
    datastore_keys_database: Annotated[
        str,
        Field(
            description="Datastore database of API keys and limits, which only the API has to "
            "reach. If empty, DATASTORE_DATABASE"
        ),
    ] = ""
    bucket: Annotated[
        str, Field(min_length=3, max_length=63, description="Cloud Storage bucket for images")
    ] = "glimpse-images"
    import_buckets: Annotated[
        tuple[Annotated[str, Field(pattern=rf"^{BUCKET_NAME}$")], ...],
        NoDecode,
        Field(
            description="Buckets that jobs may import images from (`gs_prefix`), comma-separated. "
            "Every client that may create jobs can read them"
        ),
    ] = ()
    topic_prefix: Annotated[
        str,
        Field(pattern=_RESOURCE_PREFIX, description="Prefix of topic and subscription names"),
    ] = "glimpse"

    # --- Google's emulators -----------------------------------------------------------------------
    datastore_emulator_host: Annotated[
        str, Field(pattern=_HOST_PORT, description="Datastore emulator, as host:port")
    ] = "127.0.0.1:8181"
    pubsub_emulator_host: Annotated[
        str, Field(pattern=_HOST_PORT, description="Pub/Sub emulator, as host:port")
    ] = "127.0.0.1:8085"
    storage_emulator_host: Annotated[
        str,
        Field(
            pattern=_URL,
            description="Storage emulator, as a URL. If it is set, `gs://` refers to it with "
            "BACKEND=embedded too",
        ),
    ] = "http://127.0.0.1:9023"
    push_endpoint: Annotated[
        str,
        Field(
            pattern=rf"^$|{_URL}",
            description="URL that local queues push to. If empty, that of HOST and WORKER_PORT",
        ),
    ] = ""

    # --- Logs, traces, metrics --------------------------------------------------------------------
    log_format: Annotated[
        Literal["console", "json"],
        Field(description="`console` for readable lines, or `json` for Cloud Logging"),
    ] = "console"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="Lowest severity that is logged: `debug`, `info`, `warning`, or `error`"),
    ] = "info"
    traces: Annotated[
        Literal["off", "otlp", "gcp"],
        Field(
            description="Destination of traces: `off`, none. `otlp`, the collector that the "
            "standard variable `OTEL_EXPORTER_OTLP_ENDPOINT` names. `gcp`, Cloud Trace"
        ),
    ] = "off"
    metrics: Annotated[
        bool, Field(description="Whether both services serve `/metrics` for Prometheus")
    ] = True

    @field_validator(
        "extra_model_uris",
        "cors_origins",
        "cors_headers",
        "allowed_hosts",
        "trusted_proxies",
        "email_allowed_domains",
        "import_buckets",
        mode="before",
    )
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.api_port == self.worker_port and self.port is None:
            raise ValueError("API_PORT and WORKER_PORT must differ")
        if self.max_upload_bytes_in_flight < self.max_image_bytes + FORM_OVERHEAD:
            raise ValueError(
                "MAX_UPLOAD_BYTES_IN_FLIGHT must be at least MAX_IMAGE_BYTES"
                f" and {FORM_OVERHEAD} bytes for the form"
            )
        # Both raise ValueError if the numbers contradict each other.
        _ = self.delivery, self.notification_delivery
        if self.mail_server is not None or self.email_from:
            try:
                domain_of(parseaddr(self.email_from)[1])
            except ValueError:
                raise ValueError("SMTP_URL needs EMAIL_FROM, as in glimpse@example.com") from None
        # On Google Cloud only the service that sends e-mail can read SMTP_URL.
        if self.email_from and self.mail_server is None and self.backend != "gcp":
            raise ValueError("EMAIL_FROM needs SMTP_URL")
        if self.backend != "embedded" and self.delivery_attempts < MIN_PUBSUB_ATTEMPTS:
            raise ValueError("Pub/Sub needs DELIVERY_ATTEMPTS between 5 and 100")
        if self.bucket in self.import_buckets:
            # A tenant could import the images of another.
            raise ValueError(
                "IMPORT_BUCKETS must not name BUCKET, which holds every tenant's images"
            )
        if self.backend == "gcp" and "bucket" not in self.model_fields_set:
            raise ValueError("BACKEND=gcp needs BUCKET")
        if self.backend == "gcp" and self.push_auth == "off":
            raise ValueError("BACKEND=gcp needs PUSH_AUTH=iam or PUSH_AUTH=oidc")
        if self.verifies_pushes and not (self.push_audience and self.push_service_account):
            reason = "BACKEND=gcp" if self.backend == "gcp" else "PUSH_AUTH"
            raise ValueError(f"{reason} needs PUSH_AUDIENCE and PUSH_SERVICE_ACCOUNT")
        return self

    @property
    def makes_thumbnails(self) -> bool:
        return self.backend != "gcp" if self.thumbnails is None else self.thumbnails

    @property
    def delivery(self) -> DeliveryPolicy:
        """How messages about images and jobs are delivered."""
        return DeliveryPolicy(
            attempts=self.delivery_attempts,
            min_backoff=self.max_backoff_seconds / BACKOFF_RATIO,
            max_backoff=self.max_backoff_seconds,
            ack_deadline=min(MAX_ACK_DEADLINE, max(MIN_ACK_DEADLINE, 2 * self.lease_seconds)),
            lease=self.lease_seconds,
            stale_after=STALE_SECONDS,
            dead_letter_retention=self.retention_days * DAY_SECONDS,
        )

    @property
    def notification_delivery(self) -> DeliveryPolicy:
        """How notifications are delivered: for longer, because a receiver may be down for hours."""
        return self.delivery.for_notifications()

    def channel_delivery(self, channel: Channel) -> DeliveryPolicy:
        """How messages on `channel` are delivered."""
        return self.notification_delivery if channel is NOTIFICATIONS else self.delivery

    @property
    def jobs(self) -> JobPolicy:
        return JobPolicy(retention=self.retention_days * DAY_SECONDS, stale_after=STALE_SECONDS)

    @property
    def pixel_limits(self) -> PixelLimits:
        return PixelLimits.of(self.max_image_pixels)

    @property
    def classify_seconds(self) -> float:
        """Longest time to decode and classify one image: the result must be stored in the lease."""
        return max(20.0, self.lease_seconds * 2 / 3)

    @property
    def mail_server(self) -> MailServer | None:
        """None if no e-mail is sent."""
        url = self.smtp_url.get_secret_value()
        return MailServer.parse(url) if url else None

    @property
    def email_domains(self) -> frozenset[str]:
        """Domains that e-mail may go to (`core.outbound.mail_address`). Empty without e-mail."""
        if not self.email_from:
            return frozenset()
        named = frozenset(domain.lower() for domain in self.email_allowed_domains)
        return named or frozenset({domain_of(parseaddr(self.email_from)[1])})

    @property
    def model_uris(self) -> tuple[str, ...]:
        """The bundles that the worker serves; the first one labels new images."""
        return (self.model_uri, *self.extra_model_uris)

    @property
    def model_cache(self) -> Path:
        """Folder for bundles from `gs://`."""
        return self.data_dir / "model-cache"

    @property
    def emulated_buckets(self) -> bool:
        """Whether `gs://` refers to the storage emulator.

        With BACKEND=embedded it does if STORAGE_EMULATOR_HOST is set, as in Google's libraries.
        """
        if self.backend == "embedded":
            return "storage_emulator_host" in self.model_fields_set
        return self.backend == "emulator"

    @property
    def keys_required(self) -> bool:
        return self.api_keys == "required"

    @property
    def rate(self) -> Rate | None:
        return None if self.rate_limit == "off" else Rate.parse(self.rate_limit)

    @property
    def lease(self) -> timedelta:
        return timedelta(seconds=self.lease_seconds)

    @property
    def push_authentication(self) -> Literal["off", "oidc", "iam"]:
        return self.push_auth or ("iam" if self.backend == "gcp" else "off")

    @property
    def api_hosts(self) -> tuple[str, ...]:
        """Hosts that the API answers for. Empty: every host."""
        if self.allowed_hosts or not is_loopback(self.host):
            return self.allowed_hosts
        return self._local_hosts(self.public_url)

    @property
    def worker_hosts(self) -> tuple[str, ...]:
        """Hosts that the worker answers for. Empty: every host, as on Google Cloud."""
        if is_loopback(self.host) or self.push_endpoint:
            return self._local_hosts(self.push_url)
        return ()

    def _local_hosts(self, url: str) -> tuple[str, ...]:
        """The names of this machine, and the host of `url`."""
        named = urlsplit(url).netloc.rpartition("@")[2], urlsplit(self.api_url).netloc
        hosts = (host_of(name) for name in named if name)
        return tuple(dict.fromkeys((*LOOPBACK_HOSTS, *hosts)))

    @property
    def origins(self) -> tuple[str, ...]:
        """Origins whose pages may call the API, besides the address that they call."""
        public = urlsplit(self.public_url)
        own = (f"{public.scheme}://{public.netloc}",) if public.netloc else ()
        return (*self.cors_origins, *own)

    @property
    def pushes_with_secret(self) -> bool:
        """Whether the queue and the scheduler send the secret of DATA_DIR to the worker."""
        return not self.verifies_pushes

    @property
    def verifies_pushes(self) -> bool:
        return self.push_authentication != "off"

    @property
    def on_cloud_run(self) -> bool:
        """Whether Cloud Run runs this process: https://cloud.google.com/run/docs/container-contract"""
        # Not a setting: a line of `.env` must not turn off the check of a signature.
        return bool(os.environ.get("K_SERVICE"))

    @property
    def api_url(self) -> str:
        return self._url(self.api_port)

    @property
    def worker_url(self) -> str:
        return self._url(self.worker_port)

    def _url(self, port: int) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{port}"

    @property
    def push_url(self) -> str:
        """URL that pushes go to, without the path."""
        return self.push_endpoint or self.worker_url

    @property
    def classifier_processes(self) -> int:
        return self.worker_concurrency or len(os.sched_getaffinity(0))


def load_settings() -> Settings:
    """The settings of this process. Exits with a message that names each wrong or unknown one.

    Each process calls this once, first. From then on, files that it and its children create are
    private to their user.
    """
    os.umask(0o077)
    problems = unknown_names(dotenv_values(ENV_FILE))
    try:
        settings = Settings()
    except ValidationError as invalid:
        for error in invalid.errors():
            name = ".".join(str(part) for part in error["loc"]).upper()
            message = error["msg"].removeprefix("Value error, ")
            problems.append(f"{name}: {message}" if name else message)
    if problems:
        raise SystemExit("\n  ".join(["Glimpse cannot start because of its settings:", *problems]))
    return settings


def unknown_names(names: Iterable[str]) -> list[str]:
    """A message for each line of `.env` that sets nothing: a misspelt, removed, or foreign name."""
    known = [field.upper() for field in Settings.model_fields]
    messages = []
    for name in (each.upper() for each in names):
        if name in known or name.startswith(FOREIGN_PREFIXES):
            continue
        if reason := REMOVED.get(name):
            messages.append(
                f"{name}: this setting was removed: {reason}. Delete it from {ENV_FILE}"
            )
        elif similar := difflib.get_close_matches(name, known, n=1):
            messages.append(f"{name}: there is no such setting. Did you mean {similar[0]}?")
        else:
            messages.append(
                f"{name}: there is no such setting. {ENV_FILE} is read by Glimpse only: set the "
                "variables of other programs in the environment"
            )
    return messages
