"""What /docs says of requests and refusals: the parts of OpenAPI that no signature tells."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.http.openapi import Problem, refusals
from app.images.openapi import _ERROR, _PENDING, _SUCCESS
from core import errors
from core.domain.principals import Scope
from core.http.route_access import access_of, every_route

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

JPEG, PNG, WebP, GIF (first frame) and still AVIF are accepted; the bytes decide, never a header
or a file name. Every refusal is `application/problem+json` (RFC 9457); branch on its `code`.
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
    """What each operation asks of its caller, as `app.auth.requires` has marked it."""
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
