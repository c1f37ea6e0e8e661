"""Parts of OpenAPI for streams of server-sent events."""

from app.http.openapi import Responses, refusals
from core import errors


def stream_of(what: str) -> Responses:
    """200 and 204 of a stream of events about `what`."""
    return {
        200: {
            "description": f"Events (WHATWG HTML, 9.2): `update` with the {what} as it is then, at "
            "most twice a second; at the end `complete` or `error`. `id` rises. A comment every 15 "
            "seconds says that we live. A stream that ends without its last event is to be opened "
            "again, with `Last-Event-ID`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _STREAM}},
        },
        204: {"description": "You have the last event: there is nothing left to tell"},
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
        "description": "The id of the last event that you have; nothing up to it is repeated. "
        "Browsers send it by themselves when they come again.",
    },
    {
        "name": "last_event_id",
        "in": "query",
        "schema": {"type": "string"},
        "description": "The same for a first request, where the header cannot be set.",
    },
]


STREAM_REFUSALS = refusals(errors.Overloaded, errors.Unavailable)
