"""The API's OpenAPI document: its description, its tags, and what FastAPI does not derive."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.http.openapi import header, refusals
from app.images import openapi as images
from app.jobs import openapi as jobs
from app.openapi_details import set_details
from core import errors
from core.domain.principals import Scope
from core.http.openapi import extend_openapi
from core.http.route_access import access_of, every_route

DESCRIPTION = """
*What is in this picture?* Upload an image, get its most likely labels.

1. `POST` an image. A known image gets its result at once (200). A new image is accepted (202): its
   bytes are stored and its classification is queued, so that no crash of a process loses it.
2. Request the `Location` after `Retry-After` seconds: 202 while the image is processed, then 200
   with the labels, or with an `error` that says why there are none.

The address of a result is the SHA-256 of the image's bytes. A client that computes the hash first
does not upload known images:

    hash=$(sha256sum cat.jpg | cut -d' ' -f1)
    curl -fs http://127.0.0.1:8080/api/v1/images/$hash ||
      curl -s -H 'Prefer: wait=10' --data-binary @cat.jpg http://127.0.0.1:8080/api/v1/images

The service accepts JPEG, PNG, WebP, GIF (first frame) and AVIF. It reads the format from the bytes,
never from a header or a file name. Every error is `application/problem+json` (RFC 9457); branch on
its `code`.
"""

TAGS = [
    {"name": "images", "description": "The versioned interface: caching, waiting, deletion."},
    {"name": "what", "description": "The short interface: upload, then request the status."},
    {"name": "jobs", "description": "Classification of many images as one job."},
    {"name": "streams", "description": "Tickets for streams of live updates."},
    {"name": "models", "description": "The models that classify images."},
    {"name": "keys", "description": "API keys, their limits and their usage."},
    {"name": "webhooks", "description": "Receivers of events about jobs."},
    {"name": "dead letters", "description": "Messages that used up their delivery attempts."},
    {"name": "operations", "description": "For load balancers, supervisors and Prometheus."},
]

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
        "description": "The same, for services behind a proxy that uses `Authorization`",
    },
}
_AUTHENTICATION = refusals(errors.Unauthenticated, errors.Forbidden, errors.RateLimited)
_HEADERS = {
    "RateLimit": header(
        "What is left of the key's limits (draft-ietf-httpapi-ratelimit-headers). Missing without "
        "a key, and for a key without limits",
        '"rate";r=599;t=60, "day";r=9999;t=52157',
    ),
    "RateLimit-Policy": header("The key's limits", '"rate";q=600;w=60, "day";q=10000;w=86400'),
    "Preference-Applied": header("The `wait` that the response honours", "wait=10"),
}


def install_openapi(app: FastAPI, *, keys_required: bool, public_url: str) -> None:
    """Extend the schema that FastAPI derives by shared parts and by what each route requires."""

    def extend(schema: dict[str, Any]) -> None:
        schema["servers"] = [{"url": public_url or "/"}]
        schema["components"]["headers"] = _HEADERS
        # FastAPI would remove null members from examples in the routes.
        schema["components"]["examples"] = images.EXAMPLES
        schema["components"]["schemas"].update(images.SCHEMAS | jobs.SCHEMAS)
        _add_security(app, schema, keys_required)

    extend_openapi(app, extend)


def _add_security(app: FastAPI, schema: dict[str, Any], keys_required: bool) -> None:
    schema["components"]["securitySchemes"] = _SCHEMES
    anonymous: list[dict[str, list[str]]] = [] if keys_required else [{}]
    schema["security"] = required = [{"bearer": []}, {"header": []}, *anonymous]
    for route in every_route(app.router.routes):
        scope = access_of(route)
        if not isinstance(route, APIRoute):
            continue
        for method in route.methods or ():
            operation = schema["paths"].get(route.path_format, {}).get(method.lower())
            if operation is None:
                continue
            if not isinstance(scope, Scope):
                operation["security"] = []
                continue
            operation["security"] = required
            operation["description"] += (
                f"\n\nIf keys are required: one with the scope `{scope.value}`."
            )
            for status, response in _AUTHENTICATION.items():
                operation["responses"].setdefault(str(status), response)
            _add_headers(operation)
            set_details(f"{method} {route.path_format}", operation, scope)


def _add_headers(operation: dict[str, Any]) -> None:
    """Declare the headers of all responses, and those of successful ones."""
    waits = any(each["name"] == "Prefer" for each in operation.get("parameters", ()))
    for status, response in operation["responses"].items():
        names = ["RateLimit", "RateLimit-Policy"] if status != "401" else []
        if waits and status in ("200", "202"):
            names.append("Preference-Applied")
        # A copy: routes share the descriptions of their refusals.
        headers = {**response.get("headers", {})}
        headers |= {name: {"$ref": f"#/components/headers/{name}"} for name in names}
        operation["responses"][status] = {**response, "headers": headers}
