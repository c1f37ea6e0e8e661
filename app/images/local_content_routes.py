"""`/local/blobs`: the target of the embedded backend's signed links."""

from fastapi import APIRouter, Request, Response

from app.http.ranges import ranged_response
from app.services import services_of
from core.domain.records import blob_name
from core.errors import NotFound
from core.http.query import DeclaredParameters, unknown_parameter
from core.http.route_access import public
from core.imaging.formats import sniff

_PARAMETERS = DeclaredParameters(frozenset({"expires", "signature"}))

router = APIRouter(prefix="/local/blobs", include_in_schema=False)


@router.head("/{tenant}/{image_hash}")
@router.get("/{tenant}/{image_hash}")
@public  # the signature of the link grants access
async def blob(request: Request, tenant: str, image_hash: str) -> Response:
    """The bytes of an image. Raises Forbidden if the link is invalid or expired, and NotFound."""
    services = services_of(request)
    links = services.backend.links
    if links is None:
        raise NotFound("This service does not serve the bytes of images.")
    if unknown := set(request.query_params) - _PARAMETERS.query:
        raise unknown_parameter(min(unknown), _PARAMETERS)
    name = blob_name(tenant, image_hash)
    expires = request.query_params.get("expires", "")
    now = services.clock()
    links.verify(name, expires, request.query_params.get("signature", ""), now)
    data = await services.backend.blobs.get(name)
    remaining = max(0, int(int(expires) - now.timestamp()))
    media_type = sniff(data) or "application/octet-stream"
    extension = media_type.partition("/")[2] if media_type.startswith("image/") else "bin"
    return ranged_response(
        request,
        data,
        media_type,
        f'"{image_hash}"',
        {
            "Cache-Control": f"private, max-age={remaining}",
            "Content-Disposition": f'inline; filename="{image_hash}.{extension}"',
            # The bytes are a client's: a browser must not treat them as a page of this origin.
            "Content-Security-Policy": "default-src 'none'; sandbox",
        },
    )
