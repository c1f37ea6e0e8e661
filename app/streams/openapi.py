"""OpenAPI of routes that stream server-sent events."""

from app.http.openapi import Responses, refusals
from app.streams.events import Event
from app.streams.sse import MEDIA_TYPE, encode
from core import errors

STREAM_REFUSALS = refusals(errors.Overloaded, errors.Unavailable)


def stream_of(what: str, *events: Event) -> Responses:
    """Describe the responses 200 and 204 of a stream about `what`, with an example of `events`."""
    example = b"retry: 1500\n\n" + b"".join(map(encode, events))
    return {
        200: {
            "description": f"Server-sent events. `update` carries the current {what}, at most "
            "twice a second; `complete` or `error` is the last event. `id` rises. A comment is "
            "sent every 15 seconds as a heartbeat. If the stream ends without the last event, "
            "reconnect with `Last-Event-ID`.",
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}, "example": example.decode()}},
        },
        204: {"description": "The client already has the last event."},
    }
