"""`/api/v1/keys`: a tenant's keys, for those of its keys that may administer it."""

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from app.auth.authenticator import Authenticator
from app.auth.requires import requires
from app.http.json_body import body_schema, read_json
from app.http.openapi import Responses, refusals
from app.http.responses import NO_STORE, json_answer
from app.keys.service import (
    DEFAULT_OVERLAP,
    LONGEST_OVERLAP,
    Issued,
    Keys,
    Wanted,
    document,
    moment,
)
from app.services import services_of
from core import errors
from core.clock import utc_now
from core.domain.api_keys import NAME
from core.domain.principals import Principal, Scope
from core.domain.rate_limits import Rate
from core.http.request_route import RequestRoute
from core.settings import DailyQuota

router = APIRouter(prefix="/api/v1/keys", tags=["keys"], route_class=RequestRoute)


class NewKey(BaseModel):
    """A key to be made, for the tenant of the key that asks."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=rf"^{NAME.pattern}$", description="What it is for")]
    scopes: Annotated[
        frozenset[Scope], Field(min_length=1, description="What it may be used for")
    ] = frozenset({Scope.CLASSIFY, Scope.READ})
    expires: Annotated[
        str | None, Field(description="As in `90d`, or a time (ISO 8601); null means never")
    ] = None
    rate_limit: Annotated[
        str | None, Field(description="As in `600/minute`; null means the service's limit")
    ] = None
    daily_quota: Annotated[
        DailyQuota | None,
        Field(description="Requests a day; 0: any number; null: the service's"),
    ] = None

    @field_validator("rate_limit")
    @classmethod
    def _rate(cls, value: str | None) -> str | None:
        return None if value is None else str(Rate.parse(value))

    @field_validator("expires")
    @classmethod
    def _expires(cls, value: str | None) -> str | None:
        if value is not None:
            moment(value, utc_now())
        return value


class Rotation(BaseModel):
    """How a key is rotated."""

    model_config = ConfigDict(extra="forbid")

    overlap_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=int(LONGEST_OVERLAP.total_seconds()),
            description="How long the old text stays good",
        ),
    ] = int(DEFAULT_OVERLAP.total_seconds())


class KeyBody(BaseModel):
    """A key, without its secret."""

    id: str = Field(description="Its public name, stable over rotations")
    prefix: str = Field(description="How the key's text begins")
    name: str
    tenant: str
    scopes: list[Scope]
    active: bool
    rate_limit: str | None
    daily_quota: int | None
    created_at: str
    expires_at: str | None
    last_used_at: str | None = Field(description="To the minute")
    rotated_at: str | None
    previous_expires_at: str | None = Field(description="Until when the text before is good")
    revoked_at: str | None


class IssuedKeyBody(KeyBody):
    """A key with its text, which is shown this once."""

    key: str = Field(description="What to send as `Authorization: Bearer …`")


class KeyListBody(BaseModel):
    keys: list[KeyBody]


_KEY_ID: dict[str, Any] = {
    "parameters": [{"name": "key_id", "in": "path", "required": True, "schema": {"type": "string"}}]
}
_OFF: Responses = refusals(errors.Conflict)


@router.post(
    "",
    status_code=201,
    summary="Make a key",
    description="For the tenant of the key that asks. Its text is in this answer and nowhere else.",
    responses={201: {"model": IssuedKeyBody}, **refusals(errors.InvalidRequest), **_OFF},
    openapi_extra=body_schema(NewKey, required=True),
)
@requires(Scope.ADMIN)
async def create(request: Request, principal: Principal) -> Response:
    authenticator = _authenticator(request)
    wanted = await read_json(request, NewKey)
    now = authenticator.clock()
    issued = await _keys(authenticator).create(
        Wanted(
            tenant=principal.tenant,
            name=wanted.name,
            scopes=wanted.scopes,
            expires_at=None if wanted.expires is None else moment(wanted.expires, now),
            rate=None if wanted.rate_limit is None else Rate.parse(wanted.rate_limit),
            daily_quota=wanted.daily_quota,
        )
    )
    return json_answer(_issued(issued, now), 201)


@router.get(
    "",
    summary="List the tenant's keys",
    description="Oldest first, those that are no longer good as well.",
    responses={200: {"model": KeyListBody}, **_OFF},
)
@requires(Scope.ADMIN)
async def list_keys(request: Request, principal: Principal) -> Response:
    authenticator = _authenticator(request)
    found = await _keys(authenticator).list(principal.tenant)
    now = authenticator.clock()
    return json_answer({"keys": [document(key, now) for key in found]})


@router.delete(
    "/{key_id}",
    status_code=204,
    summary="Revoke a key",
    description="Takes effect within a minute, everywhere. Revoking again changes nothing.",
    responses={204: {"description": "Revoked"}, **refusals(errors.NotFound), **_OFF},
    openapi_extra=_KEY_ID,
)
@requires(Scope.ADMIN)
async def revoke(request: Request, principal: Principal) -> Response:
    authenticator = _authenticator(request)
    key_id = request.path_params["key_id"]
    await _keys(authenticator).revoke(key_id, principal.tenant)
    authenticator.forget(key_id)
    return Response(status_code=204, headers={"Cache-Control": NO_STORE})


@router.post(
    "/{key_id}/rotate",
    summary="Give a key a new text",
    description="The key stays what it is. Its old text stays good for `overlap_seconds`.",
    responses={
        200: {"model": IssuedKeyBody},
        **refusals(errors.NotFound, errors.InvalidRequest, errors.Conflict),
    },
    openapi_extra={**_KEY_ID, **body_schema(Rotation, required=False)},
)
@requires(Scope.ADMIN)
async def rotate(request: Request, principal: Principal) -> Response:
    authenticator = _authenticator(request)
    key_id = request.path_params["key_id"]
    rotation = await read_json(request, Rotation)
    overlap = timedelta(seconds=rotation.overlap_seconds)
    issued = await _keys(authenticator).rotate(key_id, overlap, principal.tenant)
    authenticator.forget(key_id)
    return json_answer(_issued(issued, authenticator.clock()))


def _authenticator(request: Request) -> Authenticator:
    authenticator = services_of(request).authenticator
    if authenticator is None:
        raise errors.Conflict("This service asks for no keys (API_KEYS=off), and so has none.")
    return authenticator


def _keys(authenticator: Authenticator) -> Keys:
    return Keys(authenticator.access.keys, authenticator.hasher, authenticator.clock)


def _issued(issued: Issued, now: datetime) -> dict[str, object]:
    return {**document(issued.key, now), "key": issued.text}
