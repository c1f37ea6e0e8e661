"""Sending a message, and the span that its receiver's will continue."""

from dataclasses import replace

from core.domain.messages import Message
from core.observability.tracing import Kind, span
from core.ports import Publisher


async def publish(publisher: Publisher, message: Message) -> str:
    """Publish `message`; its id. Raises Unavailable.

    The message carries the trace of whoever publishes, so that all that is done for an image
    is one trace. Names: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
    """
    topic = publisher.topic(message.channel)
    with span(f"send {topic}", Kind.PRODUCER) as here:
        if here.traceparent:
            message = replace(message, traceparent=here.traceparent)
        message_id = await publisher.publish(message)
        if here.recording:
            here.set(
                {
                    "messaging.system": publisher.system,
                    "messaging.destination.name": topic,
                    "messaging.operation.type": "send",
                    "messaging.operation.name": "send",
                    "messaging.message.id": message_id,
                }
            )
    return message_id
