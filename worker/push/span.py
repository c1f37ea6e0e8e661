"""One delivery as a trace shows it: a span that continues the trace of whoever published."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request

from core.domain.messages import ClassifyImage, Message, PushEnvelope
from core.observability.logs import bind_message
from core.observability.tracing import (
    NO_TRACER,
    Kind,
    Tracer,
    current,
    make_current,
    parsed_traceparent,
)
from core.ports import Publisher


@contextmanager
def delivery(
    request: Request,
    envelope: PushEnvelope,
    message: Message,
    publisher: Publisher,
    tracer: Tracer,
) -> Iterator[None]:
    """Inside, and on the request's closing line, everything logged and traced is the message's.

    Each delivery of a message is a span of one trace. The request itself may be in another, which
    Cloud Run begins: the two are linked. Names:
    https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
    """
    subscription = envelope.subscription.rpartition("/")[2]
    # Where the publisher sent no context, the request's own goes on.
    traceparent, link = parsed_traceparent(message.traceparent), ""
    if traceparent and tracer is not NO_TRACER:
        link = parsed_traceparent(request.headers.get("traceparent", ""))
    span = tracer.begin(
        f"process {subscription}",
        Kind.CONSUMER,
        traceparent or current().traceparent,
        link=link,
    )
    make_current(span)
    bind_message(message)
    if not span.recording:
        yield
        return
    span.set(
        {
            "messaging.system": publisher.system,
            "messaging.destination.name": publisher.topic(message.channel),
            "messaging.destination.subscription.name": subscription,
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.message.id": envelope.message.messageId,
        }
    )
    if isinstance(message, ClassifyImage):
        span.set({"glimpse.image_hash": message.key.image_hash, "glimpse.model": message.key.model})
    if message.job:
        span.set({"glimpse.job": message.job})
    if envelope.deliveryAttempt is not None:
        attempt = envelope.deliveryAttempt
        span.set({"messaging.gcp_pubsub.message.delivery_attempt": attempt})
    try:
        yield
    except BaseException as error:
        span.fail(type(error).__name__)
        raise
    finally:
        span.end()
