"""The one message there is, and the push envelope it arrives in.

The envelope is Pub/Sub's: https://cloud.google.com/pubsub/docs/push#receive_push
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import MalformedEnvelope
from core.records import RecordKey

# A dead-lettered message carries these (set by Pub/Sub, and by the embedded queue alike).
DEAD_LETTER_DELIVERY_COUNT = "CloudPubSubDeadLetterSourceDeliveryCount"
DEAD_LETTER_SUBSCRIPTION = "CloudPubSubDeadLetterSourceSubscription"
DEAD_LETTER_PROJECT = "CloudPubSubDeadLetterSourceSubscriptionProject"
DEAD_LETTER_PUBLISH_TIME = "CloudPubSubDeadLetterSourceTopicPublishTime"
# Set by the embedded queue alone: how the last delivery was refused.
DEAD_LETTER_REASON = "GlimpseDeadLetterSourceReason"
DEAD_LETTER_ATTRIBUTES = (
    DEAD_LETTER_DELIVERY_COUNT,
    DEAD_LETTER_SUBSCRIPTION,
    DEAD_LETTER_PROJECT,
    DEAD_LETTER_PUBLISH_TIME,
    DEAD_LETTER_REASON,
)


@dataclass(frozen=True, slots=True)
class ClassifyImage:
    """Classify this image under this model. `traceparent` is W3C trace context, or empty."""

    key: RecordKey
    traceparent: str = ""

    def attributes(self) -> dict[str, str]:
        attributes = {
            "image_hash": self.key.image_hash,
            "model": self.key.model,
            "tenant": self.key.tenant,
        }
        if self.traceparent:
            attributes["traceparent"] = self.traceparent
        return attributes

    @classmethod
    def from_attributes(cls, attributes: dict[str, str]) -> "ClassifyImage":
        """Raises MalformedEnvelope where an attribute is missing or cannot be what it claims."""
        try:
            key = RecordKey(attributes["tenant"], attributes["image_hash"], attributes["model"])
        except KeyError as missing:
            raise MalformedEnvelope(f"The attribute {missing.args[0]} is missing.") from None
        except ValueError as wrong:
            raise MalformedEnvelope(f"The attribute {wrong}.") from None
        return cls(key, attributes.get("traceparent", ""))


class PushedMessage(BaseModel):
    """`data` is base64; `publishTime` is RFC 3339."""

    model_config = ConfigDict(extra="ignore")

    messageId: Annotated[str, Field(min_length=1)]
    publishTime: str = ""
    attributes: dict[str, str] = {}
    data: str = ""

    def payload(self) -> bytes:
        return base64.b64decode(self.data, validate=True)


class PushEnvelope(BaseModel):
    """`deliveryAttempt` is there only where the subscription has a dead-letter policy."""

    model_config = ConfigDict(extra="ignore")

    message: PushedMessage
    subscription: str
    deliveryAttempt: int | None = None

    @classmethod
    def parse(cls, body: bytes) -> "PushEnvelope":
        """Raises MalformedEnvelope for anything that is not an envelope."""
        try:
            envelope = cls.model_validate_json(body)
            envelope.message.payload()
        except ValidationError as invalid:
            fields = sorted({".".join(map(str, e["loc"])) or "body" for e in invalid.errors()})
            raise MalformedEnvelope(f"Not a push envelope: {', '.join(fields)}.") from None
        except (binascii.Error, ValueError):
            raise MalformedEnvelope("The message's data is not base64.") from None
        return envelope

    def classify_image(self) -> ClassifyImage:
        return ClassifyImage.from_attributes(self.message.attributes)
