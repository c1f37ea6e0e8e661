"""Every setting, typed and validated at start. Names are environment variables, or lines of `.env`.

README's table and `.env.example` are checked against this class by `tests/docs`.
"""

import os
from dataclasses import replace
from datetime import timedelta
from email.utils import parseaddr
from pathlib import Path
from typing import Annotated, Literal, Self

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
from core.domain.key_tokens import LEAST_SECRET_BYTES
from core.domain.policy import DeliveryPolicy, JobPolicy
from core.domain.rate_limits import MOST_DAILY_QUOTA, Rate
from core.outbound.mail_address import domain_of
from core.outbound.mail_server import MailServer

DEFAULT_BUNDLE = Path(__file__).resolve().parents[1] / "models" / "default"

# What a form may weigh on top of the image: boundaries, part headers, fields that we ignore.
FORM_OVERHEAD = 64 * 1024


def _model_uri(uri: str) -> str:
    """`uri`; ValueError where it is neither a path nor gs://bucket/folder."""
    BucketFolder.of(uri)
    return uri


ModelUri = Annotated[str, AfterValidator(_model_uri)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
# A century. What is older than that is looked for by its date, and there is no date before year 1.
MOST_DAYS = 36_500
KeptSeconds = Annotated[float, Field(gt=0, le=MOST_DAYS * 24 * 3600)]
DailyQuota = Annotated[int, Field(ge=0, le=MOST_DAILY_QUOTA)]
_DELIVERY = DeliveryPolicy()
_JOBS = JobPolicy()
# Of at most 255 characters, some are the channel's name.
# https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names
_RESOURCE_PREFIX = r"^[A-Za-z][A-Za-z0-9._~%+-]{2,199}$"
_HOST_PORT = r"^[^\s/]+:[0-9]{1,5}$"
_URL = r"^https?://[^\s?#]*[^\s/?#]$"


class Settings(BaseSettings):
    """One process's configuration; each field's description is its documentation."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        allow_inf_nan=False,  # no time that we wait or keep can be either
    )

    # --- Where things run -----------------------------------------------------------------------
    backend: Annotated[
        Literal["embedded", "emulator", "gcp"],
        Field(
            description="Where records, images and messages are kept: `embedded`, `emulator` or "
            "`gcp`; where it is not set, `make run` chooses"
        ),
    ] = "embedded"
    host: Annotated[
        str,
        Field(
            description="Address that both services listen on; where other machines reach it, the "
            "API needs API_KEYS and the worker PUSH_AUTH, or both ALLOW_PUBLIC"
        ),
    ] = "127.0.0.1"
    api_port: Annotated[Port, Field(description="Port of the API")] = 8080
    worker_port: Annotated[Port, Field(description="Port of the worker")] = 8081
    port: Annotated[
        Port | None,
        Field(description="Port of a service that runs alone, whichever it is; Cloud Run sets it"),
    ] = None
    data_dir: Annotated[Path, Field(description="Folder of the data that this machine keeps")] = (
        Path(".data")
    )
    public_url: Annotated[
        str,
        Field(
            pattern=r"^(https?://.*[^/])?$",
            description="What links in answers begin with; empty makes them relative",
        ),
    ] = ""

    # --- The model ------------------------------------------------------------------------------
    model_uri: Annotated[
        ModelUri,
        Field(
            description="Model bundle that labels images: a folder, or `gs://bucket/folder`",
        ),
    ] = str(DEFAULT_BUNDLE)
    extra_model_uris: Annotated[
        tuple[ModelUri, ...],
        NoDecode,
        Field(description="Comma-separated bundles that the worker also answers for"),
    ] = ()
    model_cache_dir: Annotated[
        Path | None,
        Field(
            description="Folder that bundles from `gs://` are kept in; empty means one in DATA_DIR"
        ),
    ] = None
    loaded_models: Annotated[
        int, Field(ge=1, description="How many bundles the worker keeps in memory")
    ] = 2
    labels_per_image: Annotated[int, Field(ge=1, le=100, description="Labels in a result")] = 5

    # --- Who may ask ----------------------------------------------------------------------------
    api_keys: Annotated[
        Literal["off", "required"],
        Field(description="Whether the API answers only who has a key: `off` or `required`"),
    ] = "off"
    allow_public: Annotated[
        bool,
        Field(
            description="Serve other machines without asking who they are: something in front does"
        ),
    ] = False
    key_secret: Annotated[
        SecretStr | None,
        Field(
            min_length=LEAST_SECRET_BYTES,
            description="Secret of the keys' hashes; empty means one that `DATA_DIR` keeps",
        ),
    ] = None
    key_cache_seconds: Annotated[
        Seconds,
        Field(le=60, description="How long a process trusts a key it has seen, revoked or not"),
    ] = 30
    rate_limit: Annotated[
        str,
        Field(
            pattern=r"^(off|[1-9][0-9]{0,8}/(second|minute|hour))$",
            description="Requests of one key: a count a `second`, `minute` or `hour`, or `off`",
        ),
    ] = "600/minute"
    daily_quota: Annotated[
        DailyQuota, Field(description="Requests of one key in a day (UTC); 0 means any number")
    ] = 0
    usage_retention_days: Annotated[
        int, Field(ge=1, le=MOST_DAYS, description="How many days a key's counts are kept")
    ] = 400

    # --- HTTP -----------------------------------------------------------------------------------
    docs: Annotated[bool, Field(description="Whether there is `/docs` and `/openapi.json`")] = True
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="Comma-separated origins whose pages may call the API; `*` means any"),
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="Comma-separated hosts that the API answers for; empty means any"),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="Comma-separated proxies whose `X-Forwarded-For` is believed; `*`: any"),
    ] = ()

    # --- Limits ---------------------------------------------------------------------------------
    max_image_bytes: Annotated[int, Field(ge=1, description="Largest upload, in bytes")] = (
        10 * 1024 * 1024
    )
    max_image_pixels: Annotated[
        int, Field(ge=1, description="Largest picture, as width times height")
    ] = 50_000_000
    max_batch_bytes: Annotated[
        int, Field(ge=1, description="Largest batch of images, in bytes, packed or not")
    ] = 256 * 1024 * 1024
    max_uploads_in_flight: Annotated[
        int, Field(ge=1, description="Uploads that one API process takes in at once")
    ] = 256
    max_upload_bytes_in_flight: Annotated[
        int, Field(ge=1, description="Bytes of uploads that it holds at once")
    ] = 128 * 1024 * 1024
    upload_grace_seconds: Annotated[
        Seconds, Field(description="How long an upload may take, however slow it is")
    ] = 10
    min_upload_bytes_per_second: Annotated[
        int, Field(ge=1, description="How fast an upload must come once that time has passed")
    ] = 16 * 1024
    header_seconds: Annotated[
        Seconds, Field(description="How long a client may take to send a request's headers")
    ] = 10
    max_connections: Annotated[
        int, Field(ge=1, description="Connections that one API process serves at once")
    ] = 3000
    max_streams: Annotated[
        int, Field(ge=0, description="Streams of live updates among them; 0 allows none")
    ] = 2000
    stream_seconds: Annotated[
        Seconds,
        Field(
            gt=0, description="How long one may last; Cloud Run allows an hour. Clients come again"
        ),
    ] = 3300
    max_wait_seconds: Annotated[
        Seconds, Field(le=60, description="Longest that `Prefer: wait` may hold an answer")
    ] = 30
    slow_wait_seconds: Annotated[
        Seconds, Field(le=60, description="How long `/what/slow` waits before it answers 202")
    ] = 20

    # --- Results and links ----------------------------------------------------------------------
    result_cache_entries: Annotated[
        int, Field(ge=0, description="Finished results each API process keeps; 0 keeps none")
    ] = 10_000
    result_cache_seconds: Annotated[
        Seconds, Field(description="How long it keeps one, and a deleted image may still answer")
    ] = 60
    result_max_age_seconds: Annotated[
        int, Field(ge=0, description="`max-age` of a finished result for browsers and CDNs")
    ] = 3600
    link_seconds: Annotated[
        int, Field(ge=1, le=12 * 3600, description="Validity of a signed link to an image")
    ] = 900

    # --- Delivery -------------------------------------------------------------------------------
    delivery_attempts: Annotated[
        int, Field(description="Deliveries of a message before it is a dead letter")
    ] = _DELIVERY.attempts
    min_backoff_seconds: Annotated[
        float, Field(description="Wait after the first refused delivery; doubles each time")
    ] = _DELIVERY.min_backoff
    max_backoff_seconds: Annotated[float, Field(description="Longest wait between deliveries")] = (
        _DELIVERY.max_backoff
    )
    ack_deadline_seconds: Annotated[
        float, Field(description="How long the worker may take to answer one delivery")
    ] = _DELIVERY.ack_deadline
    lease_seconds: Annotated[
        float, Field(description="How long one worker owns an image before another may take it")
    ] = _DELIVERY.lease
    retention_seconds: Annotated[
        KeptSeconds, Field(description="How long an undelivered message is kept")
    ] = _DELIVERY.retention
    stale_seconds: Annotated[
        KeptSeconds,
        Field(description="How long a record may stand still before it is looked after"),
    ] = _DELIVERY.stale_after
    dead_letter_retention_seconds: Annotated[
        KeptSeconds, Field(description="How long a dead letter is kept, replayed or not")
    ] = _DELIVERY.dead_letter_retention
    push_concurrency: Annotated[
        int,
        Field(ge=1, le=1000, description="Images the embedded queue has in delivery"),
    ] = 16
    notification_concurrency: Annotated[
        int,
        Field(ge=1, le=1000, description="Notifications that a queue or a worker delivers at once"),
    ] = 16
    notification_attempts: Annotated[
        int, Field(description="Deliveries of a notification before it is a dead letter")
    ] = 40
    notification_min_backoff_seconds: Annotated[
        float, Field(description="Wait after a notification's first refused delivery; doubles")
    ] = 10
    notification_max_backoff_seconds: Annotated[
        float, Field(description="Longest wait between deliveries of a notification")
    ] = 600

    # --- Jobs -----------------------------------------------------------------------------------
    schedule_seconds: Annotated[
        Seconds, Field(le=60, description="Time between two looks for jobs that are due, locally")
    ] = _JOBS.schedule_interval
    job_refresh_seconds: Annotated[
        float, Field(ge=0, description="Least time between two counts of a running job's items")
    ] = _JOBS.refresh_interval
    job_retention_seconds: Annotated[
        KeptSeconds, Field(description="How long a finished job and its items are kept")
    ] = _JOBS.retention

    # --- Notifications ---------------------------------------------------------------------------
    webhook_allow_private: Annotated[
        bool,
        Field(description="Whether webhooks may lead to private addresses, and go without TLS"),
    ] = False
    webhook_seconds: Annotated[
        Seconds, Field(le=30, description="How long a webhook's receiver may take to answer")
    ] = 15
    smtp_url: Annotated[
        SecretStr,
        Field(
            description="Mail server, as smtp://user:password@host:587 (STARTTLS where offered) or "
            "smtps://…:465 (TLS); empty: no e-mail"
        ),
    ] = SecretStr("")
    email_from: Annotated[str, Field(description="Sender of e-mail; needed with SMTP_URL")] = ""
    email_allowed_domains: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="Comma-separated domains that e-mail may go to; empty means that of "
            "EMAIL_FROM, `*` any"
        ),
    ] = ()

    # --- Google: BACKEND=emulator and BACKEND=gcp -----------------------------------------------
    google_cloud_project: Annotated[
        str, Field(description="Project; empty means the credentials' own, or `demo-glimpse`")
    ] = ""
    datastore_database: Annotated[
        str, Field(description="Datastore database; empty means the default one")
    ] = ""
    namespace_prefix: Annotated[
        str,
        Field(
            pattern=r"^[0-9A-Za-z._-]{0,36}$",
            description="What a tenant's Datastore namespace begins with",
        ),
    ] = ""
    bucket: Annotated[
        str, Field(min_length=3, max_length=63, description="Cloud Storage bucket of the images")
    ] = "glimpse-images"
    import_buckets: Annotated[
        tuple[Annotated[str, Field(pattern=rf"^{BUCKET_NAME}$")], ...],
        NoDecode,
        Field(
            description="Comma-separated buckets that jobs may take images from (`gs_prefix`), "
            "anybody's who may make jobs; empty means none"
        ),
    ] = ()
    topic_prefix: Annotated[
        str,
        Field(
            pattern=_RESOURCE_PREFIX,
            description="What the names of topics and subscriptions begin with",
        ),
    ] = "glimpse"
    signing_service_account: Annotated[
        str,
        Field(description="Who signs links to images; empty means the service's own account"),
    ] = ""
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
            description="Storage emulator, as a URL; where set, `gs://` means it with "
            "BACKEND=embedded too",
        ),
    ] = "http://127.0.0.1:9023"
    push_endpoint: Annotated[
        str,
        Field(
            pattern=rf"^$|{_URL}",
            description="Where local queues push to; empty means HOST and WORKER_PORT",
        ),
    ] = ""

    # --- Who may push: always checked with BACKEND=gcp ------------------------------------------
    push_auth: Annotated[
        bool, Field(description="Whether the worker demands Google's token from who pushes")
    ] = False
    push_audience: Annotated[str, Field(description="The token's audience, exactly")] = ""
    push_service_account: Annotated[
        str, Field(description="The e-mail of the service account that pushes")
    ] = ""
    push_keys_url: Annotated[
        str, Field(pattern=_URL, description="Keys that may sign such tokens, as a JWK set")
    ] = "https://www.googleapis.com/oauth2/v3/certs"

    # --- The worker -----------------------------------------------------------------------------
    worker_concurrency: Annotated[
        int, Field(ge=0, description="Images classified at once; 0 means one a core")
    ] = 0
    classify_seconds: Annotated[
        Seconds,
        Field(description="Longest that one image may be decoded and classified"),
    ] = 20
    duplicate_wait_seconds: Annotated[
        Seconds, Field(description="How long a duplicate delivery waits for the first one's result")
    ] = 5
    shutdown_seconds: Annotated[
        Seconds, Field(description="How long a stopping service may finish what it began")
    ] = 8

    # --- Logs, traces, metrics ------------------------------------------------------------------
    log_format: Annotated[
        Literal["console", "json"],
        Field(description="`console` for readable lines, or `json` for Cloud Logging"),
    ] = "console"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="Least severity to log: `debug`, `info`, `warning` or `error`"),
    ] = "info"
    audit_log: Annotated[
        bool, Field(description="Whether the API writes a line for each image it is given")
    ] = True
    traces: Annotated[
        Literal["off", "otlp", "gcp"],
        Field(
            description="Where traces go: `off`, nowhere; `otlp`, to a collector (the standard "
            "`OTEL_EXPORTER_OTLP_ENDPOINT` says which); `gcp`, to Cloud Trace"
        ),
    ] = "off"
    metrics: Annotated[
        bool, Field(description="Whether both services answer `/metrics` for Prometheus")
    ] = True

    @field_validator(
        "extra_model_uris",
        "cors_origins",
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
                "MAX_UPLOAD_BYTES_IN_FLIGHT must have room for one image of MAX_IMAGE_BYTES"
                f" and {FORM_OVERHEAD} bytes of form"
            )
        # These raise where the numbers contradict each other.
        _ = self.delivery, self.notification_delivery
        if self.mail_server is not None:
            try:
                domain_of(parseaddr(self.email_from)[1])
            except ValueError:
                raise ValueError("SMTP_URL needs EMAIL_FROM, as in glimpse@example.com") from None
        if self.backend != "embedded":
            self._check_pubsub_bounds()
        if self.bucket in self.import_buckets:
            # One tenant could import another's images.
            raise ValueError("IMPORT_BUCKETS must not have BUCKET, which holds every tenant's")
        if self.backend == "gcp" and "bucket" not in self.model_fields_set:
            raise ValueError("BACKEND=gcp needs BUCKET")
        if self.verifies_pushes and not (self.push_audience and self.push_service_account):
            reason = "BACKEND=gcp" if self.backend == "gcp" else "PUSH_AUTH"
            raise ValueError(f"{reason} needs PUSH_AUDIENCE and PUSH_SERVICE_ACCOUNT")
        return self

    def _check_pubsub_bounds(self) -> None:
        """Raise ValueError for what Pub/Sub would refuse, while the message can still be plain."""
        for name, value, least, most in (
            ("DELIVERY_ATTEMPTS", self.delivery_attempts, 5, 100),
            ("NOTIFICATION_ATTEMPTS", self.notification_attempts, 5, 100),
            ("ACK_DEADLINE_SECONDS", self.ack_deadline_seconds, 10, 600),
            ("RETENTION_SECONDS", self.retention_seconds, 600, 31 * 24 * 3600),
        ):
            if not least <= value <= most:
                raise ValueError(f"Pub/Sub needs {name} between {least} and {most}")

    @property
    def delivery(self) -> DeliveryPolicy:
        return DeliveryPolicy(
            attempts=self.delivery_attempts,
            min_backoff=self.min_backoff_seconds,
            max_backoff=self.max_backoff_seconds,
            ack_deadline=self.ack_deadline_seconds,
            lease=self.lease_seconds,
            retention=self.retention_seconds,
            stale_after=self.stale_seconds,
            dead_letter_retention=self.dead_letter_retention_seconds,
        )

    @property
    def notification_delivery(self) -> DeliveryPolicy:
        """As `delivery`, more patient: a receiver may be down for hours."""
        longest = self.notification_attempts * self.notification_max_backoff_seconds
        return replace(
            self.delivery,
            attempts=self.notification_attempts,
            min_backoff=self.notification_min_backoff_seconds,
            max_backoff=self.notification_max_backoff_seconds,
            retention=max(self.retention_seconds, longest + 3600),
        )

    def channel_delivery(self, channel: Channel) -> DeliveryPolicy:
        """How messages on `channel` are delivered."""
        return self.notification_delivery if channel is NOTIFICATIONS else self.delivery

    @property
    def jobs(self) -> JobPolicy:
        return JobPolicy(
            schedule_interval=self.schedule_seconds,
            refresh_interval=self.job_refresh_seconds,
            retention=self.job_retention_seconds,
            stale_after=self.stale_seconds,
        )

    @property
    def mail_server(self) -> MailServer | None:
        """None where no e-mail is sent."""
        url = self.smtp_url.get_secret_value()
        return MailServer.parse(url) if url else None

    @property
    def email_domains(self) -> frozenset[str]:
        """Domains that e-mail may go to (`core.outbound.mail_address`); none where none is sent."""
        if self.mail_server is None:
            return frozenset()
        named = frozenset(domain.lower() for domain in self.email_allowed_domains)
        return named or frozenset({domain_of(parseaddr(self.email_from)[1])})

    @property
    def model_uris(self) -> tuple[str, ...]:
        """Those that the worker answers for, the one that labels new images first."""
        return (self.model_uri, *self.extra_model_uris)

    @property
    def model_cache(self) -> Path:
        return self.model_cache_dir or self.data_dir / "model-cache"

    @property
    def emulated_buckets(self) -> bool:
        """Whether `gs://` means the storage emulator's.

        With BACKEND=embedded it does where STORAGE_EMULATOR_HOST is set, as for Google's libraries.
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
    def verifies_pushes(self) -> bool:
        return self.push_auth or self.backend == "gcp"

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
        """Where pushes go, less their path."""
        return self.push_endpoint or self.worker_url

    @property
    def classifier_processes(self) -> int:
        return self.worker_concurrency or len(os.sched_getaffinity(0))


def load_settings() -> Settings:
    """The settings of this process, or an exit that names each wrong one."""
    try:
        return Settings()
    except ValidationError as invalid:
        lines = []
        for error in invalid.errors():
            name = ".".join(str(part) for part in error["loc"]).upper()
            message = error["msg"].removeprefix("Value error, ")
            lines.append(f"  {name}: {message}" if name else f"  {message}")
        raise SystemExit(
            "Glimpse cannot start, its settings are wrong:\n" + "\n".join(lines)
        ) from None
