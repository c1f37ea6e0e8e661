"""OpenAPI of the push routes: the request body and the refusals."""

from typing import Any

from core.domain.messages import PushedMessage
from core.errors import GlimpseError
from core.http.problems import MEDIA_TYPE

# https://cloud.google.com/pubsub/docs/push#receive_push
ENVELOPE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["message", "subscription"],
                    "properties": {
                        "message": PushedMessage.model_json_schema(),
                        "subscription": {"type": "string"},
                        "deliveryAttempt": {"type": ["integer", "null"]},
                    },
                }
            }
        },
    }
}
_PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "Problem details (RFC 9457)",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
    },
}


def refusals(*kinds: type[GlimpseError]) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route. Each one makes the queue deliver the message again."""
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        response = responses.setdefault(
            kind.status,
            {"description": kind.title, "content": {MEDIA_TYPE: {"schema": _PROBLEM}}},
        )
        if kind.title not in response["description"]:
            response["description"] += f", or {kind.title.lower()}"
        if kind.status == 503:
            seconds = {"description": "Seconds", "schema": {"type": "string"}}
            response["headers"] = {"Retry-After": seconds}
    return responses
