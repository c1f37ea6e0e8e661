"""Parts of OpenAPI that both services share: problem details, and how a schema is extended."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from core.errors import GlimpseError
from core.http.openapi_clients import adapt_to_generators
from core.http.problems import MEDIA_TYPE, problem_document

Responses = dict[int | str, dict[str, Any]]
Schema = dict[str, Any]

_REF = "#/components/schemas/{model}"
# Codes of responses that no GlimpseError stands for.
_OTHER_CODES = (
    *("bad_request", "head_too_large", "headers_too_slow", "internal_error"),
    *("malformed_request", "method_not_allowed", "not_ready"),
)


class FieldError(BaseModel):
    """What is wrong with one field."""

    field: str
    message: str


class Problem(BaseModel):
    """Problem details (RFC 9457). A member that does not apply is missing.

    A later release may add members.
    """

    type: str = Field(description="A URN that ends with the code")
    title: str
    status: int = Field(description="The HTTP status")
    detail: str = Field(description="What is wrong with this request")
    code: str
    field: str | None = Field(None, description="The invalid field or parameter")
    errors: list[FieldError] | None = Field(None, description="The invalid fields")
    accepted: list[str] | None = Field(None, description="The media types or codings to send")
    max_bytes: int | None = Field(None, description="The limit of the size in bytes")
    max_items: int | None = Field(None, description="The limit of the number of images")
    max_pixels: int | None = Field(None, description="The limit of width times height")
    max_side: int | None = Field(None, description="The limit of width and height")
    width: int | None = Field(None, description="Of the image, in pixels")
    height: int | None = Field(None, description="Of the image, in pixels")
    min_bytes_per_second: int | None = Field(None, description="The slowest upload")
    computed_hash: str | None = Field(None, description="The SHA-256 of the body")
    job_id: str | None = Field(None, description="The job of an earlier request")
    scope: str | None = Field(None, description="The scope that the key lacks")
    known: list[str] | None = Field(None, description="The identities that exist")
    origin: str | None = Field(None, description="The origin of the page")
    violated_policies: list[str] | None = Field(
        None, alias="violated-policies", description="The limits that the key has used up"
    )


class NotReady(BaseModel):
    """Problem details of a service that is not ready."""

    type: str = Field(description="A URN that ends with the code")
    title: str
    status: int = Field(description="The HTTP status")
    detail: str = Field(description="What is not ready")
    code: str
    checks: dict[str, str] = Field(description="`ok` or the failure, by dependency")


def operation_id(route: APIRoute) -> str:
    """The operation id of a route is the name of its endpoint, a short verb with its object."""
    return route.name


def problem_content(model: type[BaseModel] = Problem) -> dict[str, Any]:
    """The `content` of a response with problem details."""
    return {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model=model.__name__)}}}


def refusals(
    *kinds: type[GlimpseError], examples: Mapping[type[GlimpseError], str] | None = None
) -> Responses:
    """Describe the error responses of a route. `examples` has a detail for each error."""
    responses: Responses = {}
    for kind in kinds:
        response = responses.setdefault(
            kind.status, {"description": kind.title, "content": problem_content()}
        )
        if kind.title not in response["description"]:
            response["description"] += f", or {kind.title.lower()}"
        if examples is not None:
            content = response["content"][MEDIA_TYPE]
            content.setdefault("examples", {})[kind.code] = {
                "value": problem_document(kind.status, kind.code, kind.title, examples[kind])
            }
        if kind.status in (429, 503):
            response["headers"] = {"Retry-After": header("Seconds until a retry", "1")}
        if kind.status == 401:
            response["headers"] = {"WWW-Authenticate": header("The scheme of a key", "Bearer")}
    return responses


def header(description: str, example: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}, "example": example}


def extend_openapi(app: FastAPI, extend: Callable[[Schema], None] = lambda schema: None) -> None:
    """Add the problem schemas to the schema of `app`, then call `extend` with it, once.

    FastAPI documents this way to extend a schema:
    https://fastapi.tiangolo.com/how-to/extending-openapi/
    """
    derive = app.openapi

    def openapi() -> Schema:
        if app.openapi_schema is None:
            schema = derive()
            schema.setdefault("components", {}).setdefault("schemas", {}).update(_schemas())
            extend(schema)
            adapt_to_generators(schema)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _schemas() -> Schema:
    models = (Problem, NotReady)
    _, generated = models_json_schema([(each, "validation") for each in models], ref_template=_REF)
    schemas: Schema = generated["$defs"]
    for each in models:
        members = schemas[each.__name__]["properties"]
        members["code"] = {"$ref": _REF.format(model="ProblemCode")}
        for name, member in members.items():
            if (choices := member.pop("anyOf", None)) is not None:  # missing, never null
                del member["default"]
                members[name] = {**choices[0], **member}
    codes = sorted({*_OTHER_CODES, *(kind.code for kind in _kinds(GlimpseError))})
    description = "What programs branch on. A later release may add codes."
    schemas["ProblemCode"] = {"type": "string", "enum": codes, "description": description}
    return schemas


def _kinds(kind: type[GlimpseError]) -> Iterator[type[GlimpseError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)
