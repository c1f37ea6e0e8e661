"""JSON request bodies: what every declared body has in common."""

import re
from codecs import BOM_UTF8
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from starlette.requests import Request

from core.errors import UnsupportedMediaType
from core.http.content_length import has_body
from core.http.problems import invalid_fields

JSON = "application/json"
NOT_JSON = f"This route takes JSON: send the header Content-Type: {JSON}."
_JSON_SUFFIX = re.compile(r"application/[^/]+\+json")  # RFC 6839
MAX_BYTES = 16 * 1024
MAX_MEMBERS = 100  # more than any valid body has
# Above this number of errors none is reported in detail: pydantic builds all of them or none, and
# meanwhile the event loop waits.
MAX_ERRORS = 2000

Model = TypeVar("Model", bound=BaseModel)


class JsonBody(BaseModel):
    """The base of declared request bodies."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_members(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_MEMBERS:
            raise ValueError(f"The object has more than {MAX_MEMBERS} members")
        return value


def is_json(request: Request) -> bool:
    """Whether the headers call the request's body JSON."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == JSON or _JSON_SUFFIX.fullmatch(media_type) is not None


def check_content_type(request: Request) -> None:
    """Raise UnsupportedMediaType if the request has a body that its headers do not call JSON.

    Browsers ask a service before a page of another origin sends it JSON. They do not ask for a
    body without a type, or one of a form or of text. A route for PATCH checks the patch's format
    itself.
    """
    if request.method == "PATCH":
        return
    if is_json(request):
        return
    if has_body(request.scope):
        raise UnsupportedMediaType(NOT_JSON, extra={"accepted": [JSON]})


def parse_json(body: bytes, model: type[Model]) -> Model:
    """Parse `body`; an empty one counts as `{}`. Raises InvalidRequest, which names the fields."""
    try:
        return model.model_validate_json(body.removeprefix(BOM_UTF8) or b"{}")
    except ValidationError as invalid:
        if (count := invalid.error_count()) > MAX_ERRORS:
            message = f"The document has {count} errors"
            errors: list[Any] = [{"type": "too_many", "loc": ("body",), "msg": message}]
        else:
            errors = list(invalid.errors(include_input=False, include_url=False))
        raise invalid_fields(errors, model.model_fields) from None
