"""OpenAPI for images: parameters, bodies, results and their examples."""

from typing import Any

from app.http.openapi import Responses, _examples, header, refusals
from app.images.header import ACCEPTED
from app.images.representation import ImageBody
from app.uploads.image_upload import FIELD
from core import errors

UPLOAD_REFUSALS = refusals(
    errors.MalformedBody,
    errors.UploadTooSlow,
    errors.ImageTooLarge,
    errors.UnsupportedImage,
    errors.InvalidRequest,
    errors.InvalidImage,
    errors.Unavailable,
    errors.Overloaded,
)


LOOKUP_REFUSALS = refusals(errors.NotFound, errors.InvalidRequest, errors.Unavailable)


def results(location: str, *, cacheable: bool = False) -> Responses:
    """Describe the responses 200 and 202. `location` is an example of the header."""
    finished: dict[str, Any] = {
        "model": ImageBody,
        "description": "The result: `success` with labels, or `error` with its reason",
        "content": {"application/json": {"examples": _examples("success", "error")}},
    }
    if cacheable:
        finished["headers"] = {
            "ETag": header(
                "Only for a success, which never changes", '"0f343b0931126a20f133d67c2b018a3b"'
            ),
            "Cache-Control": header(
                "`no-store`, unless it is a success", "public, max-age=3600, immutable"
            ),
        }
    return {
        200: finished,
        202: {
            "model": ImageBody,
            "description": "Accepted; the result is not available yet",
            "headers": {
                "Location": header("Path of the result", location),
                "Retry-After": header("Seconds to wait before the next request", "1"),
            },
            "content": {"application/json": {"examples": _examples("pending")}},
        },
    }


IMAGE_HASH = {
    "name": "image_hash",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "description": "SHA-256 of the image's bytes, in lower-case hex",
}


PREFER = {
    "name": "Prefer",
    "in": "header",
    "schema": {"type": "string"},
    "example": "wait=10",
    "description": "`wait=n` (RFC 7240) delays the response until the result is available, for at "
    "most n seconds. `Preference-Applied` contains the limit that applied.",
}


IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "schema": {"type": "string"},
    "description": "Entity tags that the client has. 304 if one is current.",
}


MODEL = {
    "name": "model",
    "in": "query",
    "schema": {"type": "string"},
    "description": "Identity of the model whose result is requested; by default the current one.",
}


_FORM = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": [FIELD],
            "properties": {
                FIELD: {"type": "string", "format": "binary", "description": "The image"}
            },
        }
    }
}


_RAW = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ACCEPTED}


FORM_BODY = {"requestBody": {"required": True, "content": _FORM}}


FORM_OR_RAW_BODY = {
    "requestBody": {
        "required": True,
        "description": f"A form with the image in the field `{FIELD}`, or the image itself.",
        "content": {**_FORM, **_RAW},
    },
    "parameters": [PREFER],
}


_HASH = "7f83b1657ff1fc53b92dc18148a1d65dfc2d4b1fa3d677284addd200126d9069"


_PENDING: dict[str, Any] = {
    "image_hash": _HASH,
    "status": "pending",
    "model": "default@0123456789ab",
    "annotations": [],
    "categories": [],
    "confident": None,
    "image_url": f"/api/v1/images/{_HASH}/content",
    "error": None,
    "attempts": 0,
    "created_at": "2026-11-21T09:30:00.125Z",
    "updated_at": "2026-11-21T09:30:00.125Z",
}


_SUCCESS = _PENDING | {
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
}


_ERROR = _PENDING | {
    "status": "error",
    "error": {
        "code": "undecodable_image",
        "detail": "The image is truncated.",
        "retryable": False,
    },
    "attempts": 1,
    "updated_at": "2026-11-21T09:30:00.310Z",
}
