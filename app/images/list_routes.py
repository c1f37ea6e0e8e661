"""`GET /api/v1/images`: the images of a tenant, newest first."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from app.auth.requires import requires
from app.auth.route import AuthenticatedRoute
from app.http.openapi import refusals
from app.http.pagination import POSITION, NextCursor, decode_cursor, encode_cursor
from app.http.parameters import EMPTY_IS_MISSING, Cursor, Digits, Time
from app.http.responses import NO_STORE
from app.images.representation import encode
from app.images.schemas import Image
from app.services import services_of
from core import errors
from core.bundles.bundle import MAX_LABEL_LENGTH
from core.domain.principals import Principal, Scope
from core.domain.record_lists import MIN_CONFIDENCE, RecordFilter
from core.domain.records import MAX_LABELS, MODEL, Status

DEFAULT_IMAGES, MAX_IMAGES = 50, 200


class ImageList(BaseModel):
    """A page of images, newest first. An image that two models have classified is listed twice."""

    images: list[Image]
    next_cursor: NextCursor


class Selection(BaseModel):
    """Which images a request is about."""

    label: Annotated[
        str, Field(max_length=MAX_LABEL_LENGTH, description="Only images with this label")
    ] = ""
    category: Annotated[
        str, Field(max_length=MAX_LABEL_LENGTH, description="Only images with this category")
    ] = ""
    min_confidence: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="The lowest confidence of the label and the category. Those below "
            f"{MIN_CONFIDENCE:g} are not found, except the best one of an image",
        ),
    ] = 0.0
    status: Annotated[
        Status | None, EMPTY_IS_MISSING, Field(description="Only images with this status")
    ] = None
    model: Annotated[
        str,
        Field(description="Only images under the model with this id or name"),
    ] = ""
    after: Annotated[Time, Field(description="Only images created at this time or later")] = None
    before: Annotated[Time, Field(description="Only images created before this time")] = None
    labels: Annotated[
        Digits | None,
        Field(ge=1, le=MAX_LABELS, description="The largest number of labels of each image"),
    ] = None
    cursor: Cursor = ""
    limit: Annotated[Digits, Field(ge=1, le=MAX_IMAGES, description="Largest number of images")] = (
        DEFAULT_IMAGES
    )

    def filter(self, tenant: str, model: str) -> RecordFilter:
        """`model` is the id of the selected model, or empty.

        Raises InvalidRequest if `min_confidence` applies to nothing.
        """
        if self.min_confidence and not (self.label or self.category):
            raise errors.InvalidRequest(
                "The parameter min_confidence needs label or category.",
                extra={"field": "min_confidence"},
            )
        return RecordFilter(
            tenant,
            label=self.label,
            category=self.category,
            min_confidence=self.min_confidence,
            status=self.status,
            model=model,
            since=self.after,
            before=self.before,
        )


router = APIRouter(prefix="/api/v1/images", tags=["images"], route_class=AuthenticatedRoute)


@router.get(
    "",
    summary="List images",
    description="Newest first. A page can have fewer images than `limit`, or none, before the last "
    "one: continue until `next_cursor` is null.",
    responses={
        200: {"model": ImageList},
        **refusals(errors.InvalidRequest, errors.UnknownModel, errors.Unavailable),
    },
)
@requires(Scope.READ)
async def list_images(
    request: Request, principal: Principal, selection: Annotated[Selection, Query()]
) -> Response:
    services = services_of(request)
    after = decode_cursor(selection.cursor, POSITION)
    model = selection.model
    if model and not MODEL.fullmatch(model):
        model = (await services.models.resolve(principal.tenant, model)).id
    page = await services.backend.records.list(
        selection.filter(principal.tenant, model), selection.limit, after
    )
    public_url, view = services.settings.public_url, services.images.default_view
    if selection.labels is not None:
        view = replace(view, labels=selection.labels)
    images = b",".join(encode(record, view, public_url) for record in page.records)
    cursor = b'"%b"' % encode_cursor(page.after).encode() if page.after else b"null"
    return Response(
        b'{"images":[%b],"next_cursor":%b}' % (images, cursor),
        media_type="application/json",
        headers={"Cache-Control": NO_STORE},
    )
