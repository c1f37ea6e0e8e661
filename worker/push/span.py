"""The trace of a delivery: a span that continues the publisher's trace."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request
from opentelemetry import context, trace
from opentelemetry.trace import Link, Span, SpanKind

from core.domain.messages import ClassifyImage, EmbedImage, MakeThumbnail, Message, PushEnvelope
from core.observability.logs import bind_message
from core.observability.tracing import fail, make_current, parent_from, records_spans, start_span
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
    parent, links = parent_from(message.traceparent), []
    if not trace.get_current_span(parent).get_span_context().is_valid:
        # Without the publisher's trace context, the span continues the request's.
        parent = context.get_current()
    elif records_spans():
        caller = parent_from(request.headers.get("traceparent", ""))
        caller_context = trace.get_current_span(caller).get_span_context()
        if caller_context.is_valid:
            links.append(Link(caller_context))
    span = start_span(f"process {subscription}", SpanKind.CONSUMER, parent, links)
    make_current(span)
    bind_message(message)
    if not span.is_recording():
        yield
        return
    _set_attributes(span, subscription, envelope, message, ctx.backend.publisher)
    try:
        yield
    except BaseException as error:
        fail(span, type(error).__name__)
        raise
    finally:
        span.end()


def _set_attributes(
    span: Span, subscription: str, envelope: PushEnvelope, message: Message, publisher: Publisher
) -> None:
    span.set_attributes(
        {
            "messaging.system": publisher.system,
            "messaging.destination.name": publisher.topic(message.channel),
            "messaging.destination.subscription.name": subscription,
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.message.id": envelope.message.messageId,
        }
    )
    if isinstance(message, ClassifyImage | EmbedImage):
        span.set_attribute("glimpse.image_hash", message.key.image_hash)
        span.set_attribute("glimpse.model", message.key.model)
    if isinstance(message, MakeThumbnail):
        span.set_attribute("glimpse.image_hash", message.image_hash)
    elif message.job:
        span.set_attribute("glimpse.job", message.job)
    if envelope.deliveryAttempt is not None:
        attempt = "messaging.gcp_pubsub.message.delivery_attempt"
        span.set_attribute(attempt, envelope.deliveryAttempt)
