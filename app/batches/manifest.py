"""The JSON document of a batch: the images by their hashes, and the options of the job."""

import json
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from app.batches.bucket import ObjectPrefix
from app.http.json_body import parse_json
from app.http.parameters import HASH_SCHEMA, Sha256
from core.domain.jobs import MAX_NAME, check_count
from core.domain.policy import MAX_JOB_ITEMS
from core.domain.priority import Priority
from core.domain.webhooks import JobEvent
from core.outbound.http_client import MAX_URL_LENGTH

MAX_METADATA_BYTES = 2048  # for each image, as compact JSON
MAX_ALL_METADATA_BYTES = 512 * 1024

_ENTRIES = {
    "type": "array",
    "maxItems": MAX_JOB_ITEMS,
    "description": "SHA-256 of images that the service has, or that this request contains",
    "items": {
        "oneOf": [
            HASH_SCHEMA,
            {
                "type": "object",
                "additionalProperties": False,
                "required": ["image_hash"],
                "properties": {
                    "image_hash": HASH_SCHEMA,
                    "metadata": {
                        "type": "object",
                        "description": "Returned with the result; at most 2 KiB",
                    },
                },
            },
        ]
    },
}


class BatchEntry(BaseModel):
    """An image that the service has, or that this request contains."""

    model_config = ConfigDict(extra="forbid")

    image_hash: Sha256
    metadata: dict[str, Any] = {}

    @field_validator("metadata")
    @classmethod
    def _check_size(cls, value: dict[str, Any]) -> dict[str, Any]:
        if _size(value) > MAX_METADATA_BYTES:
            raise ValueError(f"is larger than {MAX_METADATA_BYTES} bytes")
        return value


class BatchManifest(BaseModel):
    """The images and options of a batch. Query parameters may set the options instead."""

    model_config = ConfigDict(extra="forbid")

    image_hashes: Annotated[list[BatchEntry], WithJsonSchema(_ENTRIES)] = []
    gs_prefix: Annotated[
        str | None,
        Field(description="`gs://bucket/prefix`: all images there, if the bucket is allowed"),
    ] = None
    model: Annotated[
        str | None,
        Field(description="The id or name of the model, by default that of the service"),
    ] = None
    priority: Annotated[Priority | None, Field(description="`normal` by default")] = None
    not_before: Annotated[str | None, Field(description="The earliest start (RFC 3339)")] = None
    webhook: Annotated[
        str | None,
        Field(max_length=MAX_URL_LENGTH, description="A URL to send the events of the job to"),
    ] = None
    webhook_events: Annotated[
        frozenset[JobEvent] | None,
        Field(min_length=1, description="The events to send to `webhook`; all by default"),
    ] = None
    notify_email: Annotated[
        str | None, Field(description="The address that is notified when the job ends")
    ] = None

    name: Annotated[
        str | None, Field(max_length=MAX_NAME, description="A name for lists and e-mail")
    ] = None

    @field_validator("image_hashes", mode="before")
    @classmethod
    def _entries(cls, value: object) -> object:
        """Turn bare hashes into entries, so that an error is reported once, not for both forms."""
        if not isinstance(value, list):
            return value
        check_count(len(value), MAX_JOB_ITEMS)
        return [{"image_hash": each} if isinstance(each, str) else each for each in value]

    @field_validator("gs_prefix")
    @classmethod
    def _check_prefix(cls, value: str | None) -> str | None:
        if value is not None:
            ObjectPrefix.parse(value)
        return value

    @model_validator(mode="after")
    def _check_metadata(self) -> Self:
        size = sum(_size(entry.metadata) for entry in self.image_hashes if entry.metadata)
        if size > MAX_ALL_METADATA_BYTES:
            raise ValueError(
                f"metadata of all images is larger than {MAX_ALL_METADATA_BYTES} bytes"
            )
        return self


def parse_manifest(body: bytes) -> BatchManifest:
    """Raises InvalidRequest, which names the fields, and BatchTooLarge."""
    return parse_json(body, BatchManifest)


def _size(metadata: dict[str, Any]) -> int:
    """The bytes of the compact JSON that is stored. Raises ValueError for NaN and infinity."""
    text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return len(text.encode())
