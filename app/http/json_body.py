"""JSON request bodies: what every declared body has in common."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import from_json

from core.http.problems import invalid_fields

MAX_BYTES = 16 * 1024
MAX_MEMBERS = 100  # of a body; none has as many fields
# Above this number of errors none is reported in detail: pydantic builds all of them or none, and
# meanwhile the event loop waits.
MAX_ERRORS = 2000

Model = TypeVar("Model", bound=BaseModel)


class JsonBody(BaseModel):
    """The base of declared request bodies.

    A body is parsed as JSON whatever its content type: FastAPI gives the bytes of a body that is
    not labelled as JSON.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, bytes):
            value = from_json(value)
        if isinstance(value, dict) and len(value) > MAX_MEMBERS:
            raise ValueError(f"The object has more than {MAX_MEMBERS} members")
        return value


def parse_json(body: bytes, model: type[Model]) -> Model:
    """Parse `body`; an empty one counts as `{}`. Raises InvalidRequest, which names the fields."""
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as invalid:
        if (count := invalid.error_count()) > MAX_ERRORS:
            message = f"The document has {count} errors"
            errors: list[Any] = [{"type": "too_many", "loc": ("body",), "msg": message}]
        else:
            errors = list(invalid.errors(include_input=False, include_url=False))
        raise invalid_fields(errors) from None
