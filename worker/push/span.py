"""The trace of a delivery: a span that continues the publisher's trace."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request

from core.domain.messages import ClassifyImage, Message, PushEnvelope
from core.observability.logs import bind_message
from core.observability.tracing import (
    NO_TRACER,
    Kind,
    Span,
    current,
    make_current,
    parsed_traceparent,
)
from core.ports import Publisher
from worker.context import WorkerContext


@contextmanager
def delivery_span(
    request: Request, envelope: PushEnvelope, message: Message, ctx: WorkerContext
) -> Iterator[None]:
    """Trace the block as a delivery of `message`, and add the message's keys to its log lines.

    Both last until the request's closing log line. Each delivery of a message is a span of the
    message's trace. The request itself may belong to another trace, which Cloud Run starts: the
    span links to it. Names:
    https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
    """
    subscription = envelope.subscription.rpartition("/")[2]
    # Without the publisher's trace context, the span continues the request's.
    traceparent, link = parsed_traceparent(message.traceparent), ""
    if traceparent and ctx.tracer is not NO_TRACER:
        link = parsed_traceparent(request.headers.get("traceparent", ""))
    span = ctx.tracer.begin(
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
    _set_attributes(span, subscription, envelope, message, ctx.backend.publisher)
    try:
        yield
    except BaseException as error:
        span.fail(type(error).__name__)
        raise
    finally:
        span.end()


def _set_attributes(
    span: Span, subscription: str, envelope: PushEnvelope, message: Message, publisher: Publisher
) -> None:
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
