"""`/local/blobs`: where the embedded backend's signed links lead. Elsewhere storage serves them."""

from fastapi import APIRouter, Request, Response

from app.images.header import sniff
from app.services import services_of
from core.domain.records import blob_name
from core.errors import NotFound
from core.http.route_access import public

router = APIRouter(prefix="/local/blobs", include_in_schema=False)


@router.head("/{tenant}/{image_hash}")
@router.get("/{tenant}/{image_hash}")
@public  # the link's signature says who may
async def blob(request: Request, tenant: str, image_hash: str) -> Response:
    """The bytes, to whoever bears a valid link. Raises Forbidden, NotFound."""
    services = services_of(request)
    links = services.backend.links
    if links is None:
        raise NotFound("Images are not served from here.")
    name = blob_name(tenant, image_hash)
    expires = request.query_params.get("expires", "")
    now = services.clock()
    links.verify(name, expires, request.query_params.get("signature", ""), now)
    data = await services.backend.blobs.get(name)
    remaining = max(0, int(int(expires) - now.timestamp()))
    return Response(
        data,
        media_type=sniff(data) or "application/octet-stream",
        headers={
            "Cache-Control": f"private, max-age={remaining}",
            "Content-Disposition": "inline",
            # Someone else's bytes, shown on our origin: they may be an image and nothing more.
            "Content-Security-Policy": "default-src 'none'; sandbox",
        },
    )
