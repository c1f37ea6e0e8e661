"""Range requests (RFC 9110, 14) for representations in memory."""

import re
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from app.http.responses import etag_matches

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII | re.IGNORECASE)


def ranged_response(
    request: Request, data: bytes, media_type: str, etag: str, headers: Mapping[str, str]
) -> Response:
    """Return `data`, or the one range of it that the request asks for.

    304 if the client has `etag` (with its quotes), and 416 for a range behind the end. Several
    ranges, other units and a malformed range are ignored, as the RFC permits: the response is then
    the whole. So is a range under an `If-Range` that is not `etag`.
    """
    common = {"Accept-Ranges": "bytes", "ETag": etag, **headers}
    if etag_matches(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=common)
    found = _RANGE.fullmatch(request.headers.get("range", "").strip())
    applies = request.headers.get("if-range", etag) == etag
    if found is None or not applies or found.groups() == ("", ""):
        return Response(data, media_type=media_type, headers=common)
    size = len(data)
    first, last = _bounds(found[1], found[2], size)
    if first >= size:
        return Response(status_code=416, headers={**common, "Content-Range": f"bytes */{size}"})
    if last < first:  # malformed
        return Response(data, media_type=media_type, headers=common)
    part = f"bytes {first}-{last}/{size}"
    return Response(
        data[first : last + 1],
        status_code=206,
        media_type=media_type,
        headers={**common, "Content-Range": part},
    )


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    """The positions of the first and the last byte. A range without a first is a suffix."""
    if not first:
        return (max(0, size - int(last)) if int(last) else size), size - 1
    return int(first), min(int(last or size - 1), size - 1)
