"""`POST /api/v1/images/lookup`: which of many images a client need not upload.

The protocol is modelled on the batch API of Git LFS.
"""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from app.auth.requires import requires
from app.http.json_body import read_json
from app.http.openapi import refusals
from app.http.responses import json_answer
from app.images.lookup import Presence, look_up
from app.services import services_of
from core import errors
from core.domain.jobs import check_count
from core.domain.policy import MAX_JOB_ITEMS
from core.domain.principals import Principal, Scope
from core.domain.records import IMAGE_HASH, Status
from core.http.request_route import RequestRoute

MAX_BYTES = 128 * 1024  # of the body

Hash = Annotated[str, Field(pattern=f"^{IMAGE_HASH.pattern}$")]


class Lookup(BaseModel):
    """The images to look up, and the model."""

    model_config = ConfigDict(extra="forbid")

    image_hashes: Annotated[
        list[Hash],
        Field(
            max_length=MAX_JOB_ITEMS, description="SHA-256 of the images' bytes, in lower-case hex"
        ),
    ]
    model: Annotated[str, Field(description="Identity of a model; by default the current one")] = ""

    @field_validator("image_hashes", mode="before")
    @classmethod
    def _check_count(cls, value: object) -> object:
        if isinstance(value, list):
            check_count(len(value), MAX_JOB_ITEMS)
        return value


class KnownBody(BaseModel):
    """An image that need not be uploaded."""

    status: Status | None = Field(description="Null if no client has requested its labels")
    stored: bool = Field(
        description="Whether its bytes are known to be stored, so that a job can classify it by "
        "its hash; otherwise it is known by its result"
    )


class LookupBody(BaseModel):
    """The known and the missing images, each once."""

    known: dict[str, KnownBody]
    missing: list[str] = Field(description="Hashes of the images to upload")


router = APIRouter(prefix="/api/v1/images", tags=["images"], route_class=RequestRoute)


@router.post(
    "/lookup",
    summary="Look up many images",
    description="An image is known if it has a final result under the model, or if its bytes are "
    "stored. A retryable error is not a final result.",
    responses={
        200: {"model": LookupBody},
        **refusals(errors.BodyTooLarge, errors.BatchTooLarge),
        **refusals(errors.InvalidRequest, errors.Unavailable),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": Lookup.model_json_schema()}},
        }
    },
)
@requires(Scope.READ)
async def lookup(request: Request, principal: Principal) -> Response:
    services = services_of(request)
    wanted = await read_json(request, Lookup, MAX_BYTES)
    hashes = dict.fromkeys(wanted.image_hashes)
    keys = [services.images.key(principal.tenant, each, wanted.model) for each in hashes]
    found = await look_up(services.backend, keys)
    return json_answer(
        {
            "known": {k.image_hash: _document(each) for k, each in found.items() if each.known},
            "missing": [k.image_hash for k, each in found.items() if not each.known],
        }
    )


def _document(presence: Presence) -> dict[str, object]:
    record = presence.record
    return {"status": record and record.status, "stored": presence.stored}
