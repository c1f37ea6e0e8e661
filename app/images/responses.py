"""."""

from starlette.responses import Response

from app.http.negotiation import applied
from app.http.responses import NO_STORE, EncodedResponse, RawHeaders, matches
from app.images.representation import Representation
from core.settings import Settings

RETRY_AFTER = "1"  # seconds


def finished_headers(settings: Settings) -> RawHeaders:
    """How long a finished result may be kept, and by whom.

    By anyone where anyone may ask. Where keys say whose an image is, by the one who asked: a CDN
    must not give it to the next.
    """
    if settings.keys_required:
        who, more = b"private", [(b"vary", b"Authorization, X-API-Key")]
    else:
        who, more = b"public", []
    value = b"%b, max-age=%d, immutable" % (who, settings.result_max_age_seconds)
    return [(b"cache-control", value), *more]


def answer(
    result: Representation,
    *,
    location: str,
    wait: float | None = None,
    finished: RawHeaders | None = None,
    if_none_match: str | None = None,
) -> Response:
    """200, or 202 with `location` while the image is being worked on.

    With `finished` (`finished_headers`) a success may be cached, and 304 answers an `If-None-Match`
    that has its tag. `wait` is the preference that was honoured.
    """
    headers: RawHeaders = []
    if wait is not None:
        headers.append((b"preference-applied", applied(wait).encode()))
    if result.etag is not None and finished is not None:
        headers.append((b"etag", result.etag.encode()))
        headers += finished
        if if_none_match is not None and matches(if_none_match, result.etag):
            return EncodedResponse(304, b"", headers)
    else:
        headers.append((b"cache-control", NO_STORE.encode()))
    status = result.http_status
    if status == 202:
        headers.append((b"location", location.encode()))
        headers.append((b"retry-after", RETRY_AFTER.encode()))
    headers.append((b"content-length", b"%d" % len(result.body)))
    headers.append((b"content-type", b"application/json"))
    return EncodedResponse(status, result.body, headers)
