"""`GET /api/v1/images/{hash}/thumbnail`."""

import hashlib

from fastapi import APIRouter, Request, Response

from app.auth.requires import requires
from app.auth.route import AuthenticatedRoute
from app.http.openapi import header
from app.http.responses import NO_STORE, EncodedResponse, etag_matches
from app.images.openapi import LOOKUP_REFUSALS, ImageHash
from app.images.responses import RETRY_AFTER
from app.services import services_of
from core.domain.principals import Principal, Scope

WEBP = "image/webp"

router = APIRouter(prefix="/api/v1/images", tags=["images"], route_class=AuthenticatedRoute)


@router.head("/{image_hash}/thumbnail", include_in_schema=False)
@router.get(
    "/{image_hash}/thumbnail",
    response_class=Response,
    summary="Get the thumbnail of an image",
    description="A WebP of at most 256 pixels a side, without metadata. It never changes, and may "
    "be cached. 202: a worker makes it; repeat the request after `Retry-After` seconds. 404 also "
    "if the image cannot be decoded, or if the service makes no thumbnails.",
    responses={
        200: {
            "description": "The thumbnail",
            "content": {WEBP: {"schema": {"type": "string", "format": "binary"}}},
            "headers": {
                "ETag": header("Changes never", '"0f343b0931126a20f133d67c2b018a3b"'),
                "Cache-Control": header("Allows caches", "public, max-age=3600, immutable"),
            },
        },
        202: {
            "description": "A worker makes the thumbnail",
            "headers": {"Retry-After": header("Seconds until the client should ask", "1")},
        },
        304: {"description": "The client has the thumbnail (`If-None-Match`)."},
        **LOOKUP_REFUSALS,
    },
)
@requires(Scope.READ)
async def get_thumbnail(request: Request, principal: Principal, image_hash: ImageHash) -> Response:
    services = services_of(request)
    key = services.images.key(principal.tenant, image_hash)
    found = await services.thumbnails.find(key)
    if found is None:
        headers = {"Cache-Control": NO_STORE, "Retry-After": RETRY_AFTER}
        return Response(status_code=202, headers=headers)
    etag = f'"{hashlib.sha256(found).hexdigest()[:32]}"'
    caching = [(b"etag", etag.encode()), *services.success_headers]
    if etag_matches(", ".join(request.headers.getlist("if-none-match")), etag):
        return EncodedResponse(304, b"", caching)
    size = (b"content-length", b"%d" % len(found))
    return EncodedResponse(200, found, [*caching, size, (b"content-type", WEBP.encode())])
