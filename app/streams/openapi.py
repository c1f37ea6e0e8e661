"""OpenAPI of routes that stream server-sent events."""

from app.http.openapi import Responses, refusals
from core import errors


def stream_of(what: str) -> Responses:
    """Describe the responses 200 and 204 of a stream of events about `what`."""
    return {
        200: {
            "description": f"Server-sent events. `update` carries the current {what}, at most "
            "twice a second; `complete` or `error` is the last event. `id` rises. A comment is "
            "sent every 15 seconds as a heartbeat. If the stream ends without the last event, "
            "reconnect with `Last-Event-ID`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _STREAM}},
        },
        204: {"description": "The client already has the last event."},
    }


_STREAM = """retry: 1500

id: 1795253400125000
event: update
data: {"image_hash":"7f83b1657ff1…","status":"pending","annotations":[]}

id: 1795253400310000
event: complete
data: {"image_hash":"7f83b1657ff1…","status":"success","annotations":[…]}

"""


STREAM_PARAMETERS = [
    {
        "name": "Last-Event-ID",
        "in": "header",
        "schema": {"type": "string"},
        "description": "The id of the last event that the client has. Earlier events are not "
        "repeated. Browsers send this header when they reconnect.",
    },
    {
        "name": "last_event_id",
        "in": "query",
        "schema": {"type": "string"},
        "description": "Same as the header, for a first request that cannot set headers.",
    },
]


STREAM_REFUSALS = refusals(errors.Overloaded, errors.Unavailable)
