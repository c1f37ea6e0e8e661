"""Parts of OpenAPI that routes of the API share: error responses with examples, and headers."""

from typing import Any

from core import errors
from core.http import openapi
from core.http.openapi import Responses, header
from core.outbound.http_client import PrivateAddress

# The detail of each error in an example.
DETAILS: dict[type[errors.GlimpseError], str] = {
    errors.MalformedBody: "The form ends before its closing boundary.",
    errors.NotFound: "There is no such image, or it has no result of this model.",
    errors.UploadTooSlow: "The upload is slower than 16384 bytes per second.",
    errors.Overloaded: "The service is at capacity. Retry later.",
    errors.ImageTooLarge: "The image is larger than 20971520 bytes.",
    errors.UnsupportedImage: "The bytes are not an image of an accepted format: JPEG, PNG, WebP, "
    "GIF, AVIF, BMP and TIFF.",
    errors.BatchTooLarge: "A batch has at most 1000 images. Send more in several batches.",
    errors.BodyTooLarge: "The body has more than 16384 bytes.",
    errors.UnsupportedMediaType: "Send a form, a zip, or a JSON document.",
    errors.IdempotencyKeyReused: "This Idempotency-Key has created another job. Use a new key.",
    errors.HashMismatch: "The SHA-256 of the body is not the hash in the path.",
    errors.InvalidImage: "The image is 20000 x 20000 pixels. The limit is 64000000 in total.",
    errors.InvalidRequest: "The form has a file in the field 'other'. Send it in the field 'img'.",
    errors.UnknownModel: "There is no such model. Known models: colours@3cde192ffdf4.",
    errors.Unauthenticated: "The API key is not valid.",
    errors.Forbidden: "This needs a key with the scope 'admin'.",
    errors.RateLimited: "The tenant has used its 600 requests in 60 seconds. Retry in 17 seconds.",
    errors.Conflict: "This service requires no keys (API_KEYS=off), and has none.",
    errors.Unavailable: "The records database does not answer.",
    PrivateAddress: "The URL leads to an address that is not public.",
}


__all__ = ["Responses", "examples", "header", "query_parameter", "refusals"]


def query_parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "schema": {"type": "string", **schema},
        "description": description,
    }


def examples(*names: str) -> dict[str, dict[str, str]]:
    """Refer to examples among the components of the schema."""
    return {name: {"$ref": f"#/components/examples/{name}"} for name in names}


def refusals(*kinds: type[errors.GlimpseError]) -> Responses:
    """Describe the error responses of a route, with an example of each."""
    return openapi.refusals(*kinds, examples=DETAILS)
