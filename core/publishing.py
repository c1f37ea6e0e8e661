"""Asking for a classification: the message, and the span that the worker's will continue."""

from core.messages import ClassifyImage
from core.ports import Publisher
from core.records import RecordKey
from core.tracing import Kind, span


async def publish(publisher: Publisher, key: RecordKey) -> str:
    """Publish the message about `key`; its id. Raises Unavailable.

    The message carries the trace of whoever publishes, so that all that is done for an image
    is one trace. Names: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
    """
    with span(f"send {publisher.topic}", Kind.PRODUCER) as here:
        message_id = await publisher.publish(ClassifyImage(key, here.traceparent))
        if here.recording:
            here.set(
                {
                    "messaging.system": publisher.system,
                    "messaging.destination.name": publisher.topic,
                    "messaging.operation.type": "send",
                    "messaging.operation.name": "send",
                    "messaging.message.id": message_id,
                }
            )
    return message_id
