"""Parts of OpenAPI for images: parameters, bodies, responses and examples."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Path

from app.http.openapi import Responses, examples, header, query_parameter, refusals
from app.http.parameters import HASH_PATTERN, HASH_SCHEMA, IDEMPOTENCY_KEY
from app.images.representation import content_path, image_path
from app.images.schemas import Image
from app.streams.events import Event, Kind, encoded
from app.uploads.image_source import ImageUrl
from app.uploads.image_upload import FIELD
from core import errors
from core.domain.records import MAX_LABELS
from core.outbound.http_client import PrivateAddress

_HASH_TEXT = "The SHA-256 of the image's bytes, in hexadecimal"
_MODEL_TEXT = "The id or name of a model (`GET /api/v1/models`), by default that of the service"
_READ_MODEL_TEXT = (
    "The id or name of a model. By default, the default model; if the image has no result under "
    "it, the newest one of another model"
)

# Of endpoints whose parameters FastAPI resolves. `ImageService.key` checks the values.
ImageHash = Annotated[
    str, Path(description=_HASH_TEXT, json_schema_extra={"pattern": HASH_PATTERN})
]

# Of endpoints that take the request alone.
IMAGE_HASH = {
    "name": "image_hash",
    "in": "path",
    "required": True,
    "schema": HASH_SCHEMA,
    "description": _HASH_TEXT,
}
MODEL = query_parameter("model", _MODEL_TEXT)
READ_MODEL = query_parameter("model", _READ_MODEL_TEXT)
LABELS = query_parameter(
    "labels",
    "The largest number of labels in the response; the default is a setting of the service",
    type="integer",
    minimum=1,
    maximum=MAX_LABELS,
)
MIN_CONFIDENCE = query_parameter(
    "min_confidence",
    "Labels and categories below this confidence are left out; the default is a setting of the "
    "service",
    type="number",
    minimum=0,
    maximum=1,
)
VIEW = [LABELS, MIN_CONFIDENCE]
WEBHOOK = [
    query_parameter(
        "webhook",
        "An https URL with a public address. The upload is then a job of one image as well, whose "
        "events are sent to it: `Link` has the job, `Webhook-Secret` what signs the events",
        format="uri",
    ),
    {
        "name": "webhook_events",
        "in": "query",
        "schema": {"type": "array", "items": {"$ref": "#/components/schemas/JobEvent"}},
        "description": "The events to send to `webhook`; all by default",
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string", "pattern": f"^{IDEMPOTENCY_KEY.pattern}$"},
        "description": "Uploads of one image with the same key and the same `webhook` are one job, "
        "whose events are sent once. Without a `webhook`, repeating an upload changes nothing.",
    },
]
PREFER = {
    "name": "Prefer",
    "in": "header",
    "schema": {"type": "string"},
    "example": "wait=10",
    "description": "`wait=n` (RFC 7240) delays the response for up to n seconds, until the result "
    "exists. `Preference-Applied` tells how long the service waits at most.",
}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "schema": {"type": "string"},
    "description": "Entity tags that the client has. If one is current, the response is 304.",
}

UPLOAD_REFUSALS = refusals(
    errors.MalformedBody,
    errors.UploadTooSlow,
    errors.ImageTooLarge,
    errors.UnsupportedImage,
    errors.InvalidRequest,
    errors.UnknownModel,
    errors.InvalidImage,
    errors.Unavailable,
    errors.Overloaded,
)
LOOKUP_REFUSALS = refusals(
    errors.NotFound, errors.InvalidRequest, errors.UnknownModel, errors.Unavailable
)
URL_REFUSALS = refusals(
    errors.InvalidRequest, PrivateAddress, errors.UnsupportedMediaType, errors.UnsupportedImage
)
PUT_REFUSALS = refusals(
    errors.UploadTooSlow,
    errors.UnsupportedImage,
    errors.UnsupportedMediaType,
    errors.InvalidRequest,
    errors.UnknownModel,
    errors.InvalidImage,
    errors.HashMismatch,
)


def results(location: str, *, cacheable: bool = False) -> Responses:
    """Describe the responses 200 and 202. `location` is the example of the 202's `Location`."""
    finished: dict[str, Any] = {
        "model": Image,
        "description": "The image is finished: `success` with labels, or `error` with the reason",
        "content": {"application/json": {"examples": examples("success", "error")}},
    }
    if cacheable:
        finished["headers"] = {
            "ETag": header(
                "Only of a `success`, which never changes", '"0f343b0931126a20f133d67c2b018a3b"'
            ),
            "Cache-Control": header(
                "`no-store` unless the status is `success`", "public, max-age=3600, immutable"
            ),
        }
    return {
        200: finished,
        202: {
            "model": Image,
            "description": "The image is accepted, and not finished yet",
            "headers": {
                "Location": header("Where the result will be", location),
                "Retry-After": header("Seconds until the client should ask", "1"),
            },
            "content": {"application/json": {"examples": examples("pending")}},
        },
    }


SCHEMAS = {
    "ImageUpload": {
        "title": "ImageUpload",
        "type": "object",
        "description": "A form with an image.",
        "required": [FIELD],
        "properties": {FIELD: {"type": "string", "format": "binary", "description": "The image"}},
    },
    "ImageUrl": ImageUrl.model_json_schema(),
}
_FORM = {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/ImageUpload"}}}

FORM_BODY = {
    "requestBody": {"required": True, "content": _FORM},
    "parameters": [MODEL, *VIEW],
}
URL_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ImageUrl"}}},
    },
    "parameters": [MODEL, *VIEW, *WEBHOOK, PREFER],
}
WAITING_FORM_BODY = {**FORM_BODY, "parameters": [MODEL, *VIEW, *WEBHOOK, PREFER]}
# One media type: generated clients send the first one of several, whatever the file is.
RAW_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of the image. The service reads the format from them.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    "parameters": [IMAGE_HASH, MODEL, *VIEW, *WEBHOOK, PREFER],
}

EXAMPLE_HASH = "7f83b1657ff1fc53b92dc18148a1d65dfc2d4b1fa3d677284addd200126d9069"
_PENDING: dict[str, Any] = {
    "image_hash": EXAMPLE_HASH,
    "status": "pending",
    "model": "default@0123456789ab",
    "annotations": [],
    "categories": [],
    "confident": None,
    "output": None,
    "image_url": "http://127.0.0.1:8080" + content_path(EXAMPLE_HASH),
    "error": None,
    "attempts": 0,
    "created_at": "2026-11-21T09:30:00.125Z",
    "updated_at": "2026-11-21T09:30:00.125Z",
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "pending": {"summary": "Accepted", "value": _PENDING},
    "success": {
        "summary": "Classified",
        "value": _PENDING
        | {
            "status": "success",
            "annotations": [
                {"index": 1, "label": "Egyptian cat", "confidence": 0.8731},
                {"index": 2, "label": "tabby cat", "confidence": 0.0912},
            ],
            "categories": [
                {"index": 1, "label": "cat", "confidence": 0.9816},
                {"index": 2, "label": "mammal", "confidence": 0.9841},
                {"index": 3, "label": "animal", "confidence": 0.9843},
            ],
            "confident": True,
            "attempts": 1,
            "updated_at": "2026-11-21T09:30:00.310Z",
        },
    },
    "error": {
        "summary": "Cannot be classified",
        "value": _PENDING
        | {
            "status": "error",
            "error": {
                "code": "undecodable_image",
                "detail": "The image is damaged or incomplete.",
                "retryable": False,
            },
            "attempts": 1,
            "updated_at": "2026-11-21T09:30:00.310Z",
        },
    },
}


def _event(kind: Kind, example: str) -> Event:
    image = EXAMPLES[example]["value"]
    updated_at = datetime.fromisoformat(image["updated_at"])
    return Event(round(updated_at.timestamp() * 1_000_000), kind, encoded(image))


IMAGE_EVENTS = (_event(Kind.UPDATE, "pending"), _event(Kind.COMPLETE, "success"))
EXAMPLE_PATH = image_path(EXAMPLE_HASH)
