"""`POST /api/v1/images/lookup`: which of many images need no upload, as in Git LFS's batch API."""

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, field_validator

from app.auth.requires import requires, spend_images
from app.auth.route import AuthenticatedRoute
from app.http.json_body import JsonBody
from app.http.openapi import refusals
from app.http.parameters import Sha256
from app.images.lookup import Presence, look_up
from app.images.selection import resolved_model
from app.services import services_of
from core import errors
from core.domain.jobs import check_count
from core.domain.policy import MAX_JOB_ITEMS
from core.domain.principals import Principal, Scope
from core.domain.records import Status

MAX_BODY_SIZE = 128 * 1024


class ImageLookup(JsonBody):
    """The images to look up, and under which model."""

    image_hashes: Annotated[
        list[Sha256],
        Field(
            max_length=MAX_JOB_ITEMS,
            description="The SHA-256 of the images' bytes, in hexadecimal",
        ),
    ]
    model: Annotated[
        str, Field(description="The id or name of a model, by default that of the service")
    ] = ""

    @field_validator("image_hashes", mode="before")
    @classmethod
    def _check_count(cls, value: object) -> object:
        if isinstance(value, list):
            check_count(len(value), MAX_JOB_ITEMS)
        return value


class KnownImage(BaseModel):
    """An image that needs no upload."""

    status: Status | None = Field(description="Null if no client has asked for its labels yet")
    stored: bool = Field(
        description="True if the image's bytes are stored, so that a job can name it by its hash. "
        "False if only its result is known."
    )

    @classmethod
    def of(cls, presence: Presence) -> "KnownImage":
        record = presence.record
        return cls(status=record and record.status, stored=presence.stored)


class ImageLookupResult(BaseModel):
    """The known and the missing images, each once."""

    known: dict[str, KnownImage]
    missing: list[str] = Field(description="The hashes of the images to upload")


router = APIRouter(prefix="/api/v1/images", tags=["images"], route_class=AuthenticatedRoute)


@router.post(
    "/lookup",
    summary="Look up which images are known",
    description="An image is known if it has a result under the model, or if its bytes are stored. "
    "A retryable error does not count as a result.",
    responses={
        **refusals(errors.BodyTooLarge, errors.BatchTooLarge),
        **refusals(errors.InvalidRequest, errors.UnknownModel, errors.Unavailable),
    },
    max_body_size=MAX_BODY_SIZE,
)
@requires(Scope.READ)
async def look_up_images(
    request: Request, principal: Principal, lookup: ImageLookup
) -> ImageLookupResult:
    services = services_of(request)
    hashes = dict.fromkeys(lookup.image_hashes)
    model = await resolved_model(request, principal, lookup.model)
    await spend_images(request, principal, len(hashes))
    keys = [services.images.key(principal.tenant, each, model) for each in hashes]
    found = await look_up(services.backend, keys)
    return ImageLookupResult(
        known={k.image_hash: KnownImage.of(each) for k, each in found.items() if each.known},
        missing=[k.image_hash for k, each in found.items() if not each.known],
    )
