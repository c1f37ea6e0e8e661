"""`/api/v1/images`: uploads, results, streams and bytes of images."""

from fastapi import APIRouter, Request, Response

from app.auth.requires import key_recheck, requires
from app.auth.route import AuthenticatedRoute
from app.http.asgi import header_values
from app.http.negotiation import preferred_wait
from app.images.events import ViewedKey
from app.images.openapi import (
    EXAMPLE_PATH,
    IF_NONE_MATCH,
    IMAGE_EVENTS,
    IMAGE_HASH,
    LOOKUP_REFUSALS,
    MODEL,
    PREFER,
    PUT_REFUSALS,
    RAW_BODY,
    READ_MODEL,
    UPLOAD_REFUSALS,
    URL_BODY,
    URL_REFUSALS,
    VIEW,
    WAITING_FORM_BODY,
    ImageHash,
    results,
)
from app.images.responses import image_response
from app.images.result_waiter import Wait
from app.images.selection import selection_of
from app.images.service import NO_WAIT, UNKNOWN_IMAGE, check_hash
from app.images.upload import accept_upload, classify_stored, location_of
from app.services import services_of
from app.streams.openapi import STREAM_REFUSALS, stream_of
from app.streams.registry import StreamSource
from app.streams.sse import EventStream, LastEventId, open_stream
from core.domain.principals import Principal, Scope
from core.http.request_route import RequestRoute
from core.observability.logs import bind_image

MAX_WAIT_SECONDS = 30.0  # the longest `Prefer: wait=n` that is honoured

# The endpoints of hot routes take the request alone. `openapi_extra` documents their parameters.
hot_router = APIRouter(prefix="/api/v1/images", tags=["images"], route_class=RequestRoute)
router = APIRouter(prefix="/api/v1/images", tags=["images"], route_class=AuthenticatedRoute)


# The first route to match is the cheapest, and a cached result is what clients request most.
@hot_router.head("/{image_hash}", include_in_schema=False)
@hot_router.get(
    "/{image_hash}",
    summary="Get an image and its result",
    description="A `success` never changes: it has an `ETag` and may be cached. Other responses "
    "may not be cached.",
    responses={
        **results(EXAMPLE_PATH, cacheable=True),
        304: {"description": "The client has the current result (`If-None-Match`)."},
        **LOOKUP_REFUSALS,
    },
    openapi_extra={"parameters": [IMAGE_HASH, READ_MODEL, *VIEW, PREFER, IF_NONE_MATCH]},
)
@requires(Scope.READ)
async def get_image(request: Request, principal: Principal) -> Response:
    image_hash = request.path_params["image_hash"]
    services = services_of(request)
    selection = selection_of(request)
    wait = _wait(request)
    waiting = Wait(wait, request.receive, principal.key_id) if wait else NO_WAIT
    result = await services.images.find(principal.tenant, image_hash, selection, waiting)
    return image_response(
        result,
        location="" if result.status.terminal else location_of(request, result, selection),
        wait=wait,
        success=services.success_headers,
        if_none_match=", ".join(header_values(request.scope, b"if-none-match")) or None,
    )


@hot_router.post(
    "",
    summary="Upload an image",
    description="Send a form with the field `img`. A known image gets its result (200), a new one "
    "is accepted (202). With `Prefer: wait=n`, the response waits for the result.\n\n"
    "A body of any other content type is taken as the bytes of the image: "
    "`curl --data-binary @cat.jpg`. JSON has the image's `url`, or its bytes as `base64`. "
    "`PUT /api/v1/images/{image_hash}` and `POST /api/v1/images/from-url` document these forms "
    "for generated clients.",
    responses={**results(EXAMPLE_PATH), **UPLOAD_REFUSALS},
    openapi_extra=WAITING_FORM_BODY,
)
@requires(Scope.CLASSIFY)
async def upload_image(request: Request, principal: Principal) -> Response:
    return await accept_upload(request, principal, prefer=_wait(request), webhooks=True)


@hot_router.post(
    "/from-url",
    summary="Classify an image at a URL",
    description="The service fetches the image, from public addresses alone, within 15 seconds and "
    "the limit of bytes, and then treats it like an upload. Redirects are followed and checked. "
    '`POST /api/v1/images` takes the same JSON, and `{"base64": …}` as well.',
    responses={**results(EXAMPLE_PATH), **UPLOAD_REFUSALS, **URL_REFUSALS},
    openapi_extra=URL_BODY,
)
@requires(Scope.CLASSIFY)
async def classify_url(request: Request, principal: Principal) -> Response:
    return await accept_upload(
        request, principal, prefer=_wait(request), from_json=True, webhooks=True
    )


@hot_router.put(
    "/{image_hash}",
    summary="Upload an image under its hash",
    description="The body is the bytes of the image, with any content type except a form. If "
    "their SHA-256 is not the one in the path, the response is 422 and nothing is stored. "
    "Otherwise the same as `POST /api/v1/images`, so that repeating the request changes nothing.",
    responses={**results(EXAMPLE_PATH), **UPLOAD_REFUSALS, **PUT_REFUSALS},
    openapi_extra=RAW_BODY,
)
@requires(Scope.CLASSIFY)
async def put_image(request: Request, principal: Principal) -> Response:
    image_hash = request.path_params["image_hash"].lower()
    check_hash(image_hash)
    return await accept_upload(
        request, principal, prefer=_wait(request), image_hash=image_hash, webhooks=True
    )


@router.get(
    "/{image_hash}/stream",
    summary="Stream the changes of an image",
    description="Sends the current state of the image, then each change. The stream ends with "
    "`complete`, or with `failed` if the image has an error.",
    status_code=200,  # FastAPI finds no default in `EventStream`
    response_class=EventStream,
    responses={**stream_of("image", *IMAGE_EVENTS), **LOOKUP_REFUSALS, **STREAM_REFUSALS},
    openapi_extra={"parameters": [READ_MODEL, *VIEW]},
)
@requires(Scope.READ)
async def stream_image(
    request: Request, principal: Principal, image_hash: ImageHash, last_event_id: LastEventId
) -> Response:
    services = services_of(request)
    selection = selection_of(request)
    key = await services.images.known_key(principal.tenant, image_hash, selection.model)
    bind_image(key)
    topic = ViewedKey(key, selection.view)
    source = StreamSource(services.streams, services.image_poller, topic, UNKNOWN_IMAGE)
    return await open_stream(source, key_recheck(request, Scope.READ, principal), last_event_id)


@router.post(
    "/{image_hash}/classify",
    summary="Classify a stored image",
    description="Classifies an image that the service has, for example by a model that it has no "
    "result of yet, without an upload. A known result is returned at once (200), otherwise the "
    "image is accepted (202). 404 if the image must be uploaded.",
    responses={**results(EXAMPLE_PATH), **LOOKUP_REFUSALS},
    openapi_extra={"parameters": [MODEL, *VIEW, PREFER]},
)
@requires(Scope.CLASSIFY)
async def classify_image(request: Request, principal: Principal, image_hash: ImageHash) -> Response:
    return await classify_stored(request, principal, image_hash, prefer=_wait(request))


@router.head("/{image_hash}/content", include_in_schema=False)
@router.get(
    "/{image_hash}/content",
    status_code=307,
    response_class=Response,
    summary="Get the bytes of an image",
    description="Redirects to a signed link that expires.",
    responses={
        307: {
            "description": "The link is in `Location`.",
            "headers": {"Location": {"schema": {"type": "string", "format": "uri-reference"}}},
        },
        **LOOKUP_REFUSALS,
    },
)
@requires(Scope.READ)
async def get_image_content(
    request: Request, principal: Principal, image_hash: ImageHash
) -> Response:
    link = await services_of(request).images.content_link(principal.tenant, image_hash)
    return Response(status_code=307, headers={"Location": link})


@router.delete(
    "/{image_hash}",
    status_code=204,
    summary="Delete an image",
    description="Deletes the bytes and the results of every model. Caches may return a result "
    "until it expires.",
    responses=LOOKUP_REFUSALS,
)
@requires(Scope.ADMIN)
async def delete_image(request: Request, principal: Principal, image_hash: ImageHash) -> Response:
    await services_of(request).images.delete(principal.tenant, image_hash)
    return Response(status_code=204)


def _wait(request: Request) -> float | None:
    values = header_values(request.scope, b"prefer")
    return preferred_wait(values, MAX_WAIT_SECONDS) if values else None
