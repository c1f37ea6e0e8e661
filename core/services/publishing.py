"""Publishing a message with the trace context of its publisher."""

from dataclasses import replace

from opentelemetry.trace import SpanKind

from core.domain.messages import Message
from core.observability.tracing import current_traceparent, span
from core.ports import Publisher


async def publish(publisher: Publisher, message: Message) -> str:
    """Publish `message` and return its id. Raises Unavailable.

    The message carries the publisher's trace context, so the whole work on an image is one trace.
    Names: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
    """
    topic = publisher.topic(message.channel)
    with span(f"send {topic}", SpanKind.PRODUCER) as sending:
        if traceparent := current_traceparent():
            message = replace(message, traceparent=traceparent)
        message_id = await publisher.publish(message)
        if sending.is_recording():
            sending.set_attributes(
                {
                    "messaging.system": publisher.system,
                    "messaging.destination.name": topic,
                    "messaging.operation.type": "send",
                    "messaging.operation.name": "send",
                    "messaging.message.id": message_id,
                }
            )
    return message_id
