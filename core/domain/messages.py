"""The messages between the services, and the push envelope that delivers them.

The envelope is Pub/Sub's: https://cloud.google.com/pubsub/docs/push#receive_push
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.domain import channels
from core.domain.channels import Channel
from core.domain.policy import MAX_POSITION
from core.domain.priority import Priority
from core.domain.records import IMAGE_HASH, TENANT, RecordKey
from core.errors import MalformedEnvelope

# Attributes of a dead-lettered message, set by Pub/Sub and by the embedded queue.
DEAD_LETTER_DELIVERY_COUNT = "CloudPubSubDeadLetterSourceDeliveryCount"
DEAD_LETTER_SUBSCRIPTION = "CloudPubSubDeadLetterSourceSubscription"
DEAD_LETTER_PROJECT = "CloudPubSubDeadLetterSourceSubscriptionProject"
DEAD_LETTER_PUBLISH_TIME = "CloudPubSubDeadLetterSourceTopicPublishTime"
# Set by the embedded queue only: why the last delivery failed.
DEAD_LETTER_REASON = "GlimpseDeadLetterSourceReason"
DEAD_LETTER_ATTRIBUTES = (
    DEAD_LETTER_DELIVERY_COUNT,
    DEAD_LETTER_SUBSCRIPTION,
    DEAD_LETTER_PROJECT,
    DEAD_LETTER_PUBLISH_TIME,
    DEAD_LETTER_REASON,
)


KIND = "kind"  # the attribute with the kind of the message; absent in a ClassifyImage
JOB_ID = re.compile(r"[0-9a-f]{32}")
EVENT = re.compile(r"[a-z]+(?:\.[a-z_]+)*")
_POSITION = re.compile(r"[0-9]{1,9}")
_TARGET = re.compile(r"[A-Za-z0-9_-]{0,64}")


@dataclass(frozen=True, slots=True)
class ClassifyImage:
    """Asks for the classification of an image by a model. `traceparent` is W3C trace context.

    For an item of a job, `job` is the job's id and `position` the position of the item.
    """

    key: RecordKey
    traceparent: str = ""
    priority: Priority = Priority.HIGH
    job: str = ""
    position: int = 0

    @property
    def channel(self) -> Channel:
        return channels.IMAGES[self.priority]

    @property
    def tenant(self) -> str:
        return self.key.tenant

    def attributes(self) -> dict[str, str]:
        attributes = {
            "image_hash": self.key.image_hash,
            "model": self.key.model,
            "tenant": self.key.tenant,
        }
        if self.priority is not Priority.HIGH:
            attributes["priority"] = self.priority.value
        if self.job:
            attributes["job"] = self.job
            attributes["position"] = str(self.position)
        if self.traceparent:
            attributes["traceparent"] = self.traceparent
        return attributes

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, str]) -> "ClassifyImage":
        """Raises MalformedEnvelope if an attribute is missing or malformed."""
        try:
            key = RecordKey(attributes["tenant"], attributes["image_hash"], attributes["model"])
        except KeyError as missing:
            raise MalformedEnvelope(f"The attribute {missing.args[0]} is missing.") from None
        except ValueError as wrong:
            raise MalformedEnvelope(f"The attribute {wrong}.") from None
        job = attributes.get("job", "")
        if job and not JOB_ID.fullmatch(job):
            raise MalformedEnvelope("The attribute job is malformed.")
        position = attributes.get("position", "0")
        if not (_POSITION.fullmatch(position) and int(position) <= MAX_POSITION):
            raise MalformedEnvelope("The attribute position is malformed.")
        priority = attributes.get("priority", Priority.HIGH)
        if priority not in list(Priority):
            raise MalformedEnvelope("The attribute priority is malformed.")
        trace = attributes.get("traceparent", "")
        return cls(key, trace, Priority(priority), job, int(position))


@dataclass(frozen=True, slots=True)
class _JobMessage:
    """Asks for a step of a job, which `kind` names."""

    kind: ClassVar[str]

    tenant: str
    job: str
    traceparent: str = ""

    @property
    def channel(self) -> Channel:
        return channels.JOBS

    def attributes(self) -> dict[str, str]:
        attributes = {KIND: self.kind, "tenant": self.tenant, "job": self.job}
        if self.traceparent:
            attributes["traceparent"] = self.traceparent
        return attributes

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, str]) -> Self:
        """Raises MalformedEnvelope."""
        return cls(*_job_of(attributes), attributes.get("traceparent", ""))


@dataclass(frozen=True, slots=True)
class RunJob(_JobMessage):
    """Asks to publish the open items of a job and to complete the items with known results."""

    kind = "run_job"


@dataclass(frozen=True, slots=True)
class FitModel(_JobMessage):
    """Asks to fit the model of a training job whose images are all embedded."""

    kind = "fit_model"


@dataclass(frozen=True, slots=True)
class EmbedImage:
    """Asks for the embedding of an image, as an item of the job that trains a model.

    `key` names the base model. The channel is that of images to classify: both need a classifier.
    """

    key: RecordKey
    job: str
    position: int
    priority: Priority = Priority.NORMAL
    traceparent: str = ""

    @property
    def channel(self) -> Channel:
        return channels.IMAGES[self.priority]

    @property
    def tenant(self) -> str:
        return self.key.tenant

    def attributes(self) -> dict[str, str]:
        same = ClassifyImage(self.key, self.traceparent, self.priority, self.job, self.position)
        return {KIND: "embed", **same.attributes()}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, str]) -> "EmbedImage":
        """Raises MalformedEnvelope."""
        same = ClassifyImage.from_attributes(attributes)
        if not same.job:
            raise MalformedEnvelope("The attribute job is missing.")
        return cls(same.key, same.job, same.position, same.priority, same.traceparent)


@dataclass(frozen=True, slots=True)
class Notify:
    """Asks to send a notification of the event of a job, for example `job.completed`.

    With a `target` (the id of a webhook, or `email`) it asks for that one notification; without,
    for one such message for each receiver.
    """

    tenant: str
    job: str
    event: str
    target: str = ""
    traceparent: str = ""

    @property
    def channel(self) -> Channel:
        return channels.NOTIFICATIONS

    def attributes(self) -> dict[str, str]:
        attributes = {KIND: "notify", "tenant": self.tenant, "job": self.job, "event": self.event}
        if self.target:
            attributes["target"] = self.target
        if self.traceparent:
            attributes["traceparent"] = self.traceparent
        return attributes

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, str]) -> "Notify":
        """Raises MalformedEnvelope."""
        event, target = attributes.get("event", ""), attributes.get("target", "")
        if not (EVENT.fullmatch(event) and _TARGET.fullmatch(target)):
            raise MalformedEnvelope("The attribute event or target is malformed.")
        trace = attributes.get("traceparent", "")
        return cls(*_job_of(attributes), event, target, trace)


@dataclass(frozen=True, slots=True)
class MakeThumbnail:
    """Asks for the thumbnail of an image that has none."""

    tenant: str
    image_hash: str
    traceparent: str = ""
    priority: Priority = Priority.HIGH

    @property
    def channel(self) -> Channel:
        return channels.IMAGES[self.priority]

    def attributes(self) -> dict[str, str]:
        attributes = {
            KIND: "make_thumbnail",
            "tenant": self.tenant,
            "image_hash": self.image_hash,
        }
        if self.traceparent:
            attributes["traceparent"] = self.traceparent
        return attributes

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, str]) -> "MakeThumbnail":
        """Raises MalformedEnvelope."""
        tenant, image_hash = attributes.get("tenant", ""), attributes.get("image_hash", "")
        if not (TENANT.fullmatch(tenant) and IMAGE_HASH.fullmatch(image_hash)):
            raise MalformedEnvelope("The attribute tenant or image_hash is missing or malformed.")
        return cls(tenant, image_hash, attributes.get("traceparent", ""))


Message = ClassifyImage | EmbedImage | MakeThumbnail | RunJob | FitModel | Notify


_KINDS: Mapping[str, type[Message]] = {
    "classify": ClassifyImage,
    "embed": EmbedImage,
    "make_thumbnail": MakeThumbnail,
    RunJob.kind: RunJob,
    FitModel.kind: FitModel,
    "notify": Notify,
}


def message_of(attributes: Mapping[str, str]) -> Message:
    """The message with these attributes. Raises MalformedEnvelope."""
    kind = _KINDS.get(attributes.get(KIND, "classify"))
    if kind is None:
        raise MalformedEnvelope("The attribute kind is unknown.")
    return kind.from_attributes(attributes)


def _job_of(attributes: Mapping[str, str]) -> tuple[str, str]:
    tenant, job = attributes.get("tenant", ""), attributes.get("job", "")
    if not (TENANT.fullmatch(tenant) and JOB_ID.fullmatch(job)):
        raise MalformedEnvelope("The attribute tenant or job is missing or malformed.")
    return tenant, job


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
    """`deliveryAttempt` exists only if the subscription has a dead-letter policy."""

    model_config = ConfigDict(extra="ignore")

    message: PushedMessage
    subscription: str
    deliveryAttempt: int | None = None

    @classmethod
    def parse(cls, body: bytes) -> "PushEnvelope":
        """Raises MalformedEnvelope if the body is not an envelope."""
        try:
            envelope = cls.model_validate_json(body)
            envelope.message.payload()
        except ValidationError as invalid:
            fields = sorted({".".join(map(str, e["loc"])) or "body" for e in invalid.errors()})
            raise MalformedEnvelope(f"Not a push envelope: {', '.join(fields)}.") from None
        except (binascii.Error, ValueError):
            raise MalformedEnvelope("The message's data is not base64.") from None
        return envelope

    def image_message(self) -> ClassifyImage | EmbedImage | MakeThumbnail:
        """The message of a channel for images. Raises MalformedEnvelope."""
        message = message_of(self.message.attributes)
        if not isinstance(message, ClassifyImage | EmbedImage | MakeThumbnail):
            raise MalformedEnvelope("The message does not name an image.")
        return message

    def job_message(self) -> RunJob | FitModel:
        """The message of the channel of jobs. Raises MalformedEnvelope."""
        message = message_of(self.message.attributes)
        if not isinstance(message, RunJob | FitModel):
            raise MalformedEnvelope("The message does not ask for a step of a job.")
        return message

    def notification(self) -> Notify:
        """The message of the channel of notifications. Raises MalformedEnvelope."""
        message = message_of(self.message.attributes)
        if not isinstance(message, Notify):
            raise MalformedEnvelope("The message is not a notification.")
        return message
