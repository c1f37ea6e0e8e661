"""What the service answers, as frozen data.

Each class keeps the whole JSON document in `raw`, so members that a newer service adds are there
as well. Unknown members are ignored. Times are timezone-aware.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Annotation:
    """One label. `index` starts at 1 with the most likely; `confidence` is from 0 to 1."""

    index: int
    label: str
    confidence: float


@dataclass(frozen=True, slots=True)
class ImageError:
    """Why an image or a job failed. If `retryable`, a new upload starts another attempt."""

    code: str
    detail: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Image:
    """An image and its result under one model.

    `status` is `pending`, `queued`, `running`, `success` or `error`. `annotations` has the labels
    with the most likely first, `categories` broader labels if the model has them. `confident` is
    None if the model has no threshold. `uploaded` says whether this call sent the image's bytes.
    """

    hash: str
    status: str
    model: str
    annotations: tuple[Annotation, ...] = ()
    categories: tuple[Annotation, ...] = ()
    confident: bool | None = None
    output: Any = None
    error: ImageError | None = None
    image_url: str = ""
    attempts: int = 0
    created_at: datetime | None = None
    updated_at: datetime | None = None
    uploaded: bool = False
    raw: Document = field(default_factory=dict, repr=False, compare=False)

    @property
    def done(self) -> bool:
        """Whether the status is final."""
        return self.status in ("success", "error")

    @property
    def label(self) -> str | None:
        """The most likely label, or None if there is none."""
        return self.annotations[0].label if self.annotations else None

    @property
    def confidence(self) -> float | None:
        """The probability of `label`."""
        return self.annotations[0].confidence if self.annotations else None


@dataclass(frozen=True, slots=True)
class Job:
    """A job and its counts.

    `status` is `pending`, `running`, `completed`, `failed` or `cancelled`. `progress` is a
    percentage. `retry_of` is the id of the job whose images this one tries again.
    """

    id: str
    type: str
    status: str
    progress: int = 0
    total: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    priority: str = ""
    model: str = ""
    name: str | None = None
    retry_of: str | None = None
    result: Any = None
    error: ImageError | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    raw: Document = field(default_factory=dict, repr=False, compare=False)

    @property
    def done(self) -> bool:
        """Whether the status is final."""
        return self.status in ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class JobResult:
    """One item of a job.

    `status` is `pending`, `queued`, `running`, `succeeded`, `failed` or `cancelled`. `hash` is None
    if the item had no bytes. `names` has every local name that was sent with these bytes.
    """

    index: int
    hash: str | None
    name: str | None
    status: str
    annotations: tuple[Annotation, ...] = ()
    categories: tuple[Annotation, ...] = ()
    confident: bool | None = None
    output: Any = None
    error: ImageError | None = None
    metadata: Document = field(default_factory=dict)
    names: tuple[str, ...] = ()
    raw: Document = field(default_factory=dict, repr=False, compare=False)

    @property
    def label(self) -> str | None:
        """The most likely label, or None if there is none."""
        return self.annotations[0].label if self.annotations else None


@dataclass(frozen=True, slots=True)
class Model:
    """A model. `labels` is empty in a list, where the service leaves them out.

    A result is confident if its best label reaches `threshold`, or if the narrowest category of
    that label reaches `category_threshold`. They are None if the model has none; a trained model
    has a threshold for each label, in `raw`.
    """

    id: str
    name: str
    default: bool = False
    trained: bool = False
    labels: tuple[str, ...] = ()
    threshold: float | None = None
    category_threshold: float | None = None
    raw: Document = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Key:
    """An API key. `text` is the secret and is there only after `create` and `rotate`."""

    id: str
    name: str
    tenant: str
    scopes: tuple[str, ...]
    active: bool
    text: str | None = field(default=None, repr=False)
    created_at: datetime | None = None
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    raw: Document = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook. `secret` is there only after `create` and `rotate`."""

    id: str
    url: str
    events: tuple[str, ...]
    enabled: bool
    description: str = ""
    secret: str | None = field(default=None, repr=False)
    created_at: datetime | None = None
    last_delivery: Document | None = None
    raw: Document = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A verified delivery: its id, its type (for example `job.completed`) and its data."""

    id: str
    type: str
    timestamp: datetime
    data: Document


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that used all of its delivery attempts."""

    id: str
    image_hash: str | None
    model: str | None
    attempts: int
    error: ImageError | None
    dead_lettered_at: datetime | None
    resolved_at: datetime | None
    raw: Document = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """The counts of one key on one day (UTC)."""

    day: date
    key_id: str
    requests: int
    images: int
    bytes: int
    refused: int
    raw: Document = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list. `next_cursor` is None on the last page."""

    items: Sequence[T]
    next_cursor: str | None = None


def _time(value: object) -> datetime | None:
    return datetime.fromisoformat(value) if isinstance(value, str) and value else None


def _annotations(value: object) -> tuple[Annotation, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(
        Annotation(int(each.get("index", n)), str(each["label"]), float(each["confidence"]))
        for n, each in enumerate(value, 1)
    )


def _error(value: object) -> ImageError | None:
    if not isinstance(value, Mapping):
        return None
    return ImageError(
        str(value.get("code", "")), str(value.get("detail", "")), bool(value.get("retryable"))
    )


def image_of(document: Document, *, uploaded: bool = False) -> Image:
    """The image that a JSON document describes."""
    return Image(
        hash=str(document["image_hash"]),
        status=str(document["status"]),
        model=str(document.get("model") or ""),
        annotations=_annotations(document.get("annotations")),
        categories=_annotations(document.get("categories")),
        confident=document.get("confident"),
        output=document.get("output"),
        error=_error(document.get("error")),
        image_url=str(document.get("image_url") or ""),
        attempts=int(document.get("attempts") or 0),
        created_at=_time(document.get("created_at")),
        updated_at=_time(document.get("updated_at")),
        uploaded=uploaded,
        raw=document,
    )


def job_of(document: Document) -> Job:
    """The job that a JSON document describes, in full or as the response to its creation."""
    return Job(
        id=str(document["job_id"]),
        type=str(document.get("type") or ""),
        status=str(document["status"]),
        progress=int(document.get("progress") or 0),
        total=int(document.get("total") or 0),
        succeeded=int(document.get("succeeded") or 0),
        failed=int(document.get("failed") or 0),
        cancelled=int(document.get("cancelled") or 0),
        priority=str(document.get("priority") or ""),
        model=str(document.get("model") or ""),
        name=document.get("name"),
        retry_of=document.get("retry_of"),
        result=document.get("result"),
        error=_error(document.get("error")),
        created_at=_time(document.get("created_at")),
        started_at=_time(document.get("started_at")),
        completed_at=_time(document.get("completed_at")),
        raw=document,
    )


def result_of(document: Document, names: Mapping[str, Sequence[str]]) -> JobResult:
    """An item of a job; `names` are the local names by hash."""
    hash_ = document.get("image_hash")
    name = document.get("name")
    local = tuple(names.get(str(hash_), ())) if hash_ else ()
    return JobResult(
        index=int(document["index"]),
        hash=hash_,
        name=name,
        status=str(document["status"]),
        annotations=_annotations(document.get("annotations")),
        categories=_annotations(document.get("categories")),
        confident=document.get("confident"),
        output=document.get("output"),
        error=_error(document.get("error")),
        metadata=document.get("metadata") or {},
        names=local or ((str(name),) if name else ()),
        raw=document,
    )


def model_of(document: Document) -> Model:
    """The model that a JSON document describes."""
    labels = document.get("labels")
    return Model(
        id=str(document.get("id") or document.get("name")),
        name=str(document.get("name") or ""),
        default=bool(document.get("default")),
        trained=bool(document.get("trained")),
        labels=tuple(labels) if isinstance(labels, list) else (),
        threshold=document.get("threshold"),
        category_threshold=document.get("category_threshold"),
        raw=document,
    )


def key_of(document: Document) -> Key:
    """The API key that a JSON document describes."""
    return Key(
        id=str(document["id"]),
        name=str(document.get("name") or ""),
        tenant=str(document.get("tenant") or ""),
        scopes=tuple(document.get("scopes") or ()),
        active=bool(document.get("active")),
        text=document.get("key"),
        created_at=_time(document.get("created_at")),
        expires_at=_time(document.get("expires_at")),
        last_used_at=_time(document.get("last_used_at")),
        raw=document,
    )


def webhook_of(document: Document) -> Webhook:
    """The webhook that a JSON document describes."""
    return Webhook(
        id=str(document["id"]),
        url=str(document.get("url") or ""),
        events=tuple(document.get("events") or ()),
        enabled=bool(document.get("enabled")),
        description=str(document.get("description") or ""),
        secret=document.get("secret"),
        created_at=_time(document.get("created_at")),
        last_delivery=document.get("last_delivery"),
        raw=document,
    )


def dead_letter_of(document: Document) -> DeadLetter:
    """The dead letter that a JSON document describes."""
    return DeadLetter(
        id=str(document["id"]),
        image_hash=document.get("image_hash"),
        model=document.get("model"),
        attempts=int(document.get("attempts") or 0),
        error=_error(document.get("error")),
        dead_lettered_at=_time(document.get("dead_lettered_at")),
        resolved_at=_time(document.get("resolved_at")),
        raw=document,
    )


def usage_of(document: Document) -> Usage:
    """The counts of a day that a JSON document describes."""
    return Usage(
        day=date.fromisoformat(str(document["day"])),
        key_id=str(document["key_id"]),
        requests=int(document.get("requests") or 0),
        images=int(document.get("images") or 0),
        bytes=int(document.get("bytes") or 0),
        refused=int(document.get("refused") or 0),
        raw=document,
    )
