"""What /docs says of requests and refusals: the parts of OpenAPI that no signature tells."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from app.image_header import ACCEPTED
from app.representation import ImageBody
from app.upload import FIELD
from core import errors
from core.identity import Scope
from core.messages import JOB_ID
from core.problems import MEDIA_TYPE
from core.public_http import PrivateAddress
from core.route_access import access_of, every_route

DESCRIPTION = """
*What is in this picture?* Upload an image, get its most likely labels.

1. `POST` an image. A known one is answered at once (200). A new one is accepted (202): its bytes
   are stored, its classification is on its way, and nothing that happens to a process loses it.
2. Follow `Location`, not before `Retry-After` seconds have passed: 202 while it is being worked
   on, then 200 with the labels, or with an `error` that says why there are none.

The address of a result is the SHA-256 of the image's bytes, so whoever hashes first never uploads a
known image:

    hash=$(sha256sum cat.jpg | cut -d' ' -f1)
    curl -fs http://127.0.0.1:8080/api/v1/images/$hash ||
      curl -s -H 'Prefer: wait=10' --data-binary @cat.jpg http://127.0.0.1:8080/api/v1/images

JPEG, PNG, WebP, GIF (first frame) and AVIF are accepted; the bytes decide, never a header or a file
name. Every refusal is `application/problem+json` (RFC 9457); branch on its `code`.
"""

TAGS = [
    {"name": "images", "description": "The versioned interface: caching, waiting, deleting."},
    {"name": "what", "description": "The short way: upload, then ask for the status."},
    {"name": "jobs", "description": "Many images as one piece of work."},
    {"name": "keys", "description": "Who may ask, and how much; where keys are required."},
    {"name": "webhooks", "description": "Who is told when a job ends."},
    {"name": "dead letters", "description": "Messages that used up their deliveries."},
    {"name": "operations", "description": "For load balancers and supervisors."},
]


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
    errors.BatchTooLarge: "A batch has at most 1000 images; send more as several.",
    errors.BodyTooLarge: "The body has more than 131072 bytes.",
    errors.UnsupportedMediaType: "Send a form, a zip, or a JSON document.",
    errors.IdempotencyKeyReused: "This Idempotency-Key has created another job; use a new one.",
    errors.InvalidImage: "The picture is 20000 x 20000 pixels, more than 50000000 in all.",
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
    """200 and 202; `location` is where the 202 points."""
    finished: dict[str, Any] = {
        "model": ImageBody,
        "description": "The end: `success` with labels, or `error` with its reason",
        "content": {"application/json": {"examples": _examples("success", "error")}},
    }
    if cacheable:
        finished["headers"] = {
            "ETag": header("Of a success; it never changes", '"0f343b0931126a20f133d67c2b018a3b"'),
            "Cache-Control": header(
                "`no-store` unless a success", "public, max-age=3600, immutable"
            ),
        }
    return {
        200: finished,
        202: {
            "model": ImageBody,
            "description": "Accepted, being worked on",
            "headers": {
                "Location": header("Where the result will be", location),
                "Retry-After": header("Seconds to wait before asking", "1"),
            },
            "content": {"application/json": {"examples": _examples("pending")}},
        },
    }


def stream_of(what: str) -> Responses:
    """200 and 204 of a stream of events about `what`."""
    return {
        200: {
            "description": f"Events (WHATWG HTML, 9.2): `update` with the {what} as it is then, at "
            "most twice a second; at the end `complete` or `error`. `id` rises. A comment every 15 "
            "seconds says that we live. A stream that ends without its last event is to be opened "
            "again, with `Last-Event-ID`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _STREAM}},
        },
        204: {"description": "You have the last event: there is nothing left to tell"},
    }


_STREAM = """retry: 1500

id: 1795253400125000
event: update
data: {"image_hash":"7f83b1657ff1…","status":"pending","annotations":[]}

id: 1795253400310000
event: complete
data: {"image_hash":"7f83b1657ff1…","status":"success","annotations":[…]}

"""

IMAGE_HASH = {
    "name": "image_hash",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "description": "SHA-256 of the image's bytes, in lower-case hex",
}

JOB_ID_PARAMETER = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{JOB_ID.pattern}$"},
}

PREFER = {
    "name": "Prefer",
    "in": "header",
    "schema": {"type": "string"},
    "example": "wait=10",
    "description": "`wait=n` (RFC 7240) holds the answer for up to n seconds, until the result is "
    "there; `Preference-Applied` says how long was granted.",
}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "schema": {"type": "string"},
    "description": "Entity tags that you have; 304 answers one that is still right.",
}
MODEL = {
    "name": "model",
    "in": "query",
    "schema": {"type": "string"},
    "description": "Another model's result, by the model's identity; by default the current one's.",
}

STREAM_PARAMETERS = [
    {
        "name": "Last-Event-ID",
        "in": "header",
        "schema": {"type": "string"},
        "description": "The id of the last event that you have; nothing up to it is repeated. "
        "Browsers send it by themselves when they come again.",
    },
    {
        "name": "last_event_id",
        "in": "query",
        "schema": {"type": "string"},
        "description": "The same for a first request, where the header cannot be set.",
    },
]

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


STREAM_REFUSALS = refusals(errors.Overloaded, errors.Unavailable)
GUARD_REFUSALS = refusals(errors.Unauthenticated, errors.Forbidden, errors.RateLimited)
_SCHEMES: dict[str, dict[str, str]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, as in `Authorization: Bearer glp_…`",
    },
    "header": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same, where `Authorization` belongs to something in front",
    },
}


def _add_security(app: FastAPI, schema: dict[str, Any], keys_required: bool) -> None:
    """What each operation asks of its caller, as `app.guard` has marked it."""
    schema["components"]["securitySchemes"] = _SCHEMES
    anyone: list[dict[str, list[str]]] = [] if keys_required else [{}]
    for route in every_route(app.router.routes):
        scope = access_of(route)
        if not isinstance(route, APIRoute) or not isinstance(scope, Scope):
            continue
        for method in route.methods or ():
            operation = schema["paths"].get(route.path_format, {}).get(method.lower())
            if operation is not None:
                operation["security"] = [{"bearer": []}, {"header": []}, *anyone]
                operation["description"] += (
                    f"\n\nWhere keys are required: one with the scope `{scope.value}`."
                )
                for status, response in GUARD_REFUSALS.items():
                    operation["responses"].setdefault(str(status), response)


def install_documentation(app: FastAPI, *, keys_required: bool) -> None:
    """Complete the schema that FastAPI derives: what is named once and referred to."""
    derive = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = derive()
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
            # Here and not in the routes: FastAPI would leave out what is null.
            components["examples"] = {
                "pending": {"summary": "Accepted", "value": _PENDING},
                "success": {"summary": "Classified", "value": _SUCCESS},
                "error": {"summary": "Cannot be classified", "value": _ERROR},
            }
            _add_security(app, schema, keys_required)
        assert app.openapi_schema is not None
        return app.openapi_schema

    # The way that FastAPI documents for extending the schema.
    app.openapi = openapi  # type: ignore[method-assign]


_HASH = "7f83b1657ff1fc53b92dc18148a1d65dfc2d4b1fa3d677284addd200126d9069"
_PENDING: dict[str, Any] = {
    "image_hash": _HASH,
    "status": "pending",
    "model": "default@0123456789ab",
    "annotations": [],
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
        {"index": 2, "label": "tabby", "confidence": 0.0912},
    ],
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
