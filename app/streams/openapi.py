"""OpenAPI of routes that stream server-sent events."""

from app.http.openapi import Responses, refusals
from app.streams.events import Event
from app.streams.sse import MEDIA_TYPE, encode
from core import errors

STREAM_REFUSALS = refusals(errors.Overloaded, errors.Unavailable)


def stream_of(what: str, *events: Event) -> Responses:
    """Describe the responses 200 and 204 of a stream about `what`, with an example of `events`."""
    first, *others = events
    example = encode(first, 1500) + b"".join(map(encode, others))
    return {
        200: {
            "description": f"Server-sent events. `update` carries the current {what}, at most "
            "twice a second; `complete`, `failed` or `cancelled` is the last event. `id` rises. "
            "If the stream itself cannot continue, the last event is a `failed` without `id`, and "
            "its data is a problem document. A comment is sent every 15 seconds as a heartbeat. "
            "If the stream ends without the last event, reconnect with `Last-Event-ID`.",
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}, "example": example.decode()}},
        },
        204: {"description": "The client already has the last event."},
    }
