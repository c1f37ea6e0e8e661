"""`/what`: the short interface for images."""

from fastapi import APIRouter, Request, Response

from app.auth.requires import requires
from app.images.openapi import (
    EXAMPLE_HASH,
    FORM_BODY,
    IMAGE_HASH,
    LOOKUP_REFUSALS,
    READ_MODEL,
    UPLOAD_REFUSALS,
    VIEW,
    results,
)
from app.images.representation import Representation
from app.images.responses import image_response
from app.images.selection import Selection, selection_of
from app.images.upload import accept_upload
from app.services import services_of
from core.domain.principals import Principal, Scope
from core.http.request_route import RequestRoute

router = APIRouter(prefix="/what", tags=["what"], route_class=RequestRoute)

SLOW_WAIT_SECONDS = 20.0  # also in the description of the route

_RESULTS = results(f"/what/status/{EXAMPLE_HASH}")


@router.post(
    "/fast",
    summary="Upload an image without waiting",
    description="A known image gets its labels (200), a new one is accepted (202).",
    responses={**_RESULTS, **UPLOAD_REFUSALS},
    openapi_extra=FORM_BODY,
)
@requires(Scope.CLASSIFY)
async def upload_fast(request: Request, principal: Principal) -> Response:
    return await accept_upload(request, principal, locate=_location, form_only=True)


@router.post(
    "/slow",
    summary="Upload an image and wait for its labels",
    description="Same as `/what/fast`, but the response for a new image waits up to 20 seconds for "
    "the labels. Then it is 202.",
    responses={**_RESULTS, **UPLOAD_REFUSALS},
    openapi_extra=FORM_BODY,
)
@requires(Scope.CLASSIFY)
async def upload_slow(request: Request, principal: Principal) -> Response:
    return await accept_upload(
        request, principal, wait=SLOW_WAIT_SECONDS, locate=_location, form_only=True
    )


@router.head("/status/{image_hash}", include_in_schema=False)
@router.get(
    "/status/{image_hash}",
    summary="Get the status of an image",
    description="202 while the image is processed, 200 when it is finished, 404 if it was never "
    "uploaded.",
    responses={**_RESULTS, **LOOKUP_REFUSALS},
    openapi_extra={"parameters": [IMAGE_HASH, READ_MODEL, *VIEW]},
)
@requires(Scope.READ)
async def get_status(request: Request, principal: Principal) -> Response:
    image_hash = request.path_params["image_hash"]
    selection = selection_of(request)
    result = await services_of(request).images.find(principal.tenant, image_hash, selection)
    return image_response(result, location=_location(request, result, selection))


def _location(request: Request, result: Representation, selection: Selection) -> str:
    """Where the status will be. The query of a request that selected nothing stays empty."""
    services = services_of(request)
    url = f"{services.settings.public_url}/what/status/{result.image_hash}"
    if not request.scope["query_string"]:
        return url
    return url + selection.query(result.model, services.images.default_view)
