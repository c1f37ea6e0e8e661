"""Responses with the representation of an image."""

from starlette.responses import Response

from app.http.negotiation import applied_wait
from app.http.responses import NO_STORE, EncodedResponse, RawHeaders, etag_matches
from app.images.representation import Representation
from core.settings import Settings

RETRY_AFTER = "1"  # seconds
# A result never changes. The bound is for deleted images: caches keep a result this long.
MAX_AGE = 3600  # seconds


def success_headers(settings: Settings) -> RawHeaders:
    """The caching headers of a success.

    With API keys, shared caches such as a CDN must not store it: they would serve it to other
    tenants.
    """
    if settings.keys_required:
        who, more = b"private", [(b"vary", b"Authorization, X-API-Key")]
    else:
        who, more = b"public", []
    value = b"%b, max-age=%d, immutable" % (who, MAX_AGE)
    return [(b"cache-control", value), *more]


def image_response(
    result: Representation,
    *,
    location: str,
    wait: float | None = None,
    success: RawHeaders | None = None,
    if_none_match: str | None = None,
) -> Response:
    """200 with a terminal result, otherwise 202 with `location`.

    `success` (`success_headers`) lets caches store a success, and lets 304 answer an
    `If-None-Match` that has its tag. `wait` is the preference that was applied, in seconds.
    """
    headers: RawHeaders = []
    if wait is not None:
        headers.append((b"preference-applied", applied_wait(wait).encode()))
    if result.etag is not None and success is not None:
        headers.append((b"etag", result.etag.encode()))
        headers += success
        if if_none_match is not None and etag_matches(if_none_match, result.etag):
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
