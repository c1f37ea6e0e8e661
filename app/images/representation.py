"""The representation of a record for clients: JSON and its entity tag."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field

from core.clock import rfc3339
from core.domain.records import Annotation, Record, Status


@dataclass(frozen=True, slots=True)
class Representation:
    """An encoded record. Only a success has an `etag`, because only it never changes."""

    image_hash: str
    status: Status
    body: bytes
    etag: str | None

    @property
    def http_status(self) -> int:
        return 200 if self.status.terminal else 202


def represent(record: Record, public_url: str) -> Representation:
    """Encode `record`. Its links begin with `public_url`."""
    body = encode(record, public_url)
    etag = None
    if record.status is Status.SUCCESS:
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return Representation(record.key.image_hash, record.status, body, etag)


def encode(record: Record, public_url: str) -> bytes:
    # Before the end, `error` is the reason of the last failed delivery.
    error = record.error if record.status is Status.ERROR else None
    document: dict[str, Any] = {
        "image_hash": record.key.image_hash,
        "status": record.status,
        "model": record.key.model,
        "annotations": annotation_documents(record.annotations),
        "categories": annotation_documents(record.categories),
        "confident": record.confident,
        "image_url": public_url + content_path(record.key.image_hash),
        "error": error
        and {"code": error.code, "detail": error.detail, "retryable": error.retryable},
        "attempts": record.attempts,
        "created_at": rfc3339(record.created_at),
        "updated_at": rfc3339(record.updated_at),
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def annotation_documents(annotations: Iterable[Annotation]) -> list[dict[str, Any]]:
    """Labels or categories as JSON."""
    return [
        {"index": each.index, "label": each.label, "confidence": each.confidence}
        for each in annotations
    ]


def image_path(image_hash: str) -> str:
    return f"/api/v1/images/{image_hash}"


def content_path(image_hash: str) -> str:
    return f"/api/v1/images/{image_hash}/content"


# --- OpenAPI. -------------------------------------------------------------------------------------


class AnnotationBody(BaseModel):
    """One label."""

    index: int = Field(ge=1, description="Rank, from 1 for the most likely label", examples=[1])
    label: str = Field(examples=["Egyptian cat"])
    confidence: float = Field(ge=0, le=1, description="A probability", examples=[0.8731])


class ErrorBody(BaseModel):
    """Why an image could not be classified."""

    code: str = Field(examples=["undecodable_image"])
    detail: str = Field(examples=["The image is truncated."])
    retryable: bool = Field(description="Whether another upload of the image starts a new attempt")


class ImageBody(BaseModel):
    """An image and its result."""

    image_hash: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the image's bytes")
    status: Status = Field(
        description="`pending` → `queued` → `running` → `success` or `error`. Another upload after "
        "a retryable error starts again at `pending`."
    )
    model: str = Field(description="Identity of the model that labels the image: name@digest")
    annotations: list[AnnotationBody] = Field(description="Most likely first; empty until success")
    categories: list[AnnotationBody] = Field(
        description="Broader labels, each with the sum of its labels' probabilities. Ordered by "
        "confidence in whole percent, then the narrower first; empty if the model has none"
    )
    confident: bool | None = Field(
        description="Whether the best label reaches the model's threshold. If not, show the result "
        "as not sure. Null until success, and if the model has no threshold"
    )
    image_url: str = Field(description="URL of the image's bytes")
    error: ErrorBody | None
    attempts: int = Field(ge=0, description="How often a worker has started to classify it")
    created_at: str = Field(description="RFC 3339, UTC", examples=["2026-11-21T09:30:00.125Z"])
    updated_at: str = Field(description="RFC 3339, UTC", examples=["2026-11-21T09:30:00.310Z"])
