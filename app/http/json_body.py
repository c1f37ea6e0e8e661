"""A small JSON body: read within a bound, checked against a model."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from core.errors import BodyTooLarge, InvalidRequest

MAX_BYTES = 16 * 1024
MOST_ERRORS = 10  # of one body that are named
# Of more than so many none is: pydantic tells all or nothing, and the event loop waits for it.
TOO_MANY_ERRORS = 2000

Model = TypeVar("Model", bound=BaseModel)


async def read_json(request: Request, model: type[Model], max_bytes: int = MAX_BYTES) -> Model:
    """Raises BodyTooLarge, and InvalidRequest that names what is wrong without repeating it."""
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > max_bytes:
            raise BodyTooLarge(f"The body has more than {max_bytes} bytes.")
        body += chunk
    return parse_json(bytes(body), model)


def parse_json(body: bytes, model: type[Model]) -> Model:
    """`body` as `model`; an empty one counts as `{}`. Raises InvalidRequest as `read_json` does."""
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as invalid:
        errors = _named(invalid)
        detail = "; ".join(f"{error['field']}: {error['message']}" for error in errors)
        raise InvalidRequest(detail, extra={"errors": errors}) from None


def body_schema(
    model: type[BaseModel],
    *,
    required: bool,
    media_types: Sequence[str] = ("application/json",),
    examples: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """What /docs says of such a body (`openapi_extra`)."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)  # what it refers to is among the answers' parts
    body: dict[str, Any] = {"schema": schema}
    if examples:
        body["examples"] = {name: {"value": value} for name, value in examples.items()}
    content = dict.fromkeys(media_types, body)
    return {"requestBody": {"required": required, "content": content}}


def _named(invalid: ValidationError) -> list[dict[str, str]]:
    if (count := invalid.error_count()) > TOO_MANY_ERRORS:
        return [{"field": "body", "message": f"It has {count} mistakes"}]
    found = invalid.errors(include_input=False, include_url=False)
    return [{"field": _field(error), "message": error["msg"]} for error in found[:MOST_ERRORS]]


def _field(error: ErrorDetails) -> str:
    """Where the error is. A name that we do not know is the sender's, and might be anything."""
    if error["type"] == "extra_forbidden":
        return "unknown field"
    return ".".join(map(str, error["loc"])) or "body"
