"""Parts of OpenAPI that every route shares: the problem body, headers, refusals."""

from typing import Any

from pydantic import BaseModel, Field

from core import errors
from core.http.problems import MEDIA_TYPE
from core.outbound.http_client import PrivateAddress


class Problem(BaseModel):
    """Problem details (RFC 9457). Some carry further members."""

    type: str = Field(description="A URN made of the code")
    title: str
    status: int = Field(description="The HTTP status")
    detail: str = Field(description="What is wrong with this request")
    code: str = Field(description="What programs branch on")


_EXAMPLES: dict[type[errors.GlimpseError], str] = {
    errors.MalformedBody: "The form ends before its closing boundary.",
    errors.NotFound: "No such image, or not under this model.",
    errors.UploadTooSlow: "The upload came slower than 16384 bytes a second.",
    errors.Overloaded: "The service has as much to do as it can hold; try again.",
    errors.ImageTooLarge: "The image is larger than 10485760 bytes.",
    errors.UnsupportedImage: "The bytes are not a JPEG, PNG, WebP, GIF or AVIF image.",
    errors.BatchTooLarge: "A batch has at most 1000 images. Send more in several batches.",
    errors.BodyTooLarge: "The body has more than 131072 bytes.",
    errors.UnsupportedMediaType: "Send a form, a zip, or a JSON document.",
    errors.IdempotencyKeyReused: "This Idempotency-Key has created another job; use a new one.",
    errors.InvalidImage: ("The image is 20000 x 20000 pixels. The limit is 50000000 in total."),
    errors.InvalidRequest: "The form has no field 'img'.",
    errors.Unauthenticated: "The API key is not valid.",
    errors.Forbidden: "This needs a key with the scope 'admin'.",
    errors.RateLimited: "More than 600 requests in 60 seconds; more in 17.",
    errors.Conflict: "The state of the thing forbids it.",
    errors.BodyTooLarge: "The body has more than 16384 bytes.",
    errors.Unavailable: "The queue does not answer.",
    PrivateAddress: "The URL leads to an address that is not public.",
}


Responses = dict[int | str, dict[str, Any]]


def header(description: str, example: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}, "example": example}


def query_parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "schema": {"type": "string", **schema},
        "description": description,
    }


def _examples(*names: str) -> dict[str, dict[str, str]]:
    return {name: {"$ref": f"#/components/examples/{name}"} for name in names}


def refusals(*kinds: type[errors.GlimpseError]) -> Responses:
    """The refusals of a route, with an example of each."""
    responses: Responses = {}
    for kind in kinds:
        response = responses.setdefault(
            kind.status,
            {
                "description": kind.title,
                "content": {
                    MEDIA_TYPE: {
                        "schema": {"$ref": "#/components/schemas/Problem"},
                        "examples": {},
                    }
                },
            },
        )
        if kind.title not in response["description"]:
            response["description"] += f", or {kind.title.lower()}"
        response["content"][MEDIA_TYPE]["examples"][kind.code] = {
            "value": {
                "type": f"urn:glimpse:problem:{kind.code}",
                "title": kind.title,
                "status": kind.status,
                "detail": _EXAMPLES[kind],
                "code": kind.code,
            }
        }
        if kind.status in (429, 503):
            response["headers"] = {"Retry-After": header("Seconds", "1")}
    return responses
