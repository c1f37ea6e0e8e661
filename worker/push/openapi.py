"""OpenAPI of the push routes: the request body and the refusals."""

from typing import Any

from core.domain.messages import PushedMessage

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
