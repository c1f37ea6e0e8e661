"""The representation of a record for clients: JSON and its entity tag."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from app.images.view import View
from core.clock import rfc3339
from core.domain.records import Annotation, Record, Status


@dataclass(frozen=True, slots=True)
class Representation:
    """An encoded record. Only a success has an `etag`, because only it never changes."""

    image_hash: str
    model: str
    status: Status
    body: bytes
    etag: str | None

    @property
    def http_status(self) -> int:
        return 200 if self.status.terminal else 202


def represent(record: Record, view: View, public_url: str) -> Representation:
    """Encode the part of `record` that `view` selects. Its links begin with `public_url`."""
    body = encode(record, view, public_url)
    etag = None
    if record.status is Status.SUCCESS:
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return Representation(record.key.image_hash, record.key.model, record.status, body, etag)


def encode(record: Record, view: View, public_url: str) -> bytes:
    # Before the end, `error` is the reason of the last failed delivery.
    error = record.error if record.status is Status.ERROR else None
    document: dict[str, Any] = {
        "image_hash": record.key.image_hash,
        "status": record.status,
        "model": record.key.model,
        "annotations": annotation_documents(view.of_labels(record.annotations)),
        "categories": annotation_documents(view.of_categories(record.categories)),
        "confident": record.confident,
        "output": json.loads(record.output) if record.output else None,
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
