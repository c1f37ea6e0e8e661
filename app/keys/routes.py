"""`/api/v1/keys`: the keys of a tenant, for keys of that tenant with the scope `admin`."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Request, Response
from pydantic import Field, field_validator

from app.auth.authenticator import Authenticator
from app.auth.requires import requires
from app.auth.route import AuthenticatedRoute
from app.http.json_body import JsonBody
from app.http.openapi import refusals
from app.keys.representation import IssuedKey, Key, KeyList
from app.keys.service import DEFAULT_OVERLAP, LONGEST_OVERLAP, Keys, Wanted, moment
from app.services import services_of
from core import errors
from core.clock import utc_now
from core.domain.api_keys import NAME
from core.domain.principals import Principal, Scope
from core.domain.rate_limits import Rate
from core.http.validation_messages import explain_pattern
from core.settings import DailyQuota

router = APIRouter(prefix="/api/v1/keys", tags=["keys"], route_class=AuthenticatedRoute)


async def _authenticator(request: Request) -> Authenticator:
    authenticator = services_of(request).authenticator
    if authenticator is None:
        raise errors.Conflict("This service requires no keys (API_KEYS=off), and has none.")
    return authenticator


KeyAuthenticator = Annotated[Authenticator, Depends(_authenticator)]
_KEYS_OFF = refusals(errors.Conflict)
_BODY = refusals(errors.InvalidRequest)


class KeyCreation(JsonBody):
    """A key to create for the caller's tenant."""

    name: Annotated[
        str,
        Field(
            pattern=explain_pattern(
                rf"^{NAME.pattern}$", "must have 1 to 100 characters, without control characters"
            ),
            description="What the key is for",
        ),
    ]
    scopes: Annotated[
        frozenset[Scope], Field(min_length=1, description="What the key may be used for")
    ] = frozenset({Scope.CLASSIFY, Scope.READ})
    expires: Annotated[
        str | None,
        Field(description="A duration such as `90d`, or a time (ISO 8601). Null: never"),
    ] = None
    rate_limit: Annotated[
        str | None, Field(description="Such as `600/minute`. Null: the service's rate limit")
    ] = None
    daily_quota: Annotated[
        DailyQuota | None, Field(description="Requests a day. 0: no quota. Null: the service's")
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


class KeyRotation(JsonBody):
    """How to rotate a key."""

    overlap_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=int(LONGEST_OVERLAP.total_seconds()),
            description="How long the old text stays valid",
        ),
    ] = int(DEFAULT_OVERLAP.total_seconds())


@router.post(
    "",
    status_code=201,
    summary="Create a key",
    description="Creates a key for the caller's tenant. It has at most the limits and the expiry "
    "of the caller's key, and the scope `operator` only if that key has it. Only this response "
    "contains its text.",
    responses={**_BODY, **_KEYS_OFF},
)
@requires(Scope.ADMIN)
async def create_key(
    principal: Principal, authenticator: KeyAuthenticator, new: KeyCreation
) -> IssuedKey:
    now = authenticator.clock()
    issued = await _keys(authenticator).create(
        Wanted(
            tenant=principal.tenant,
            name=new.name,
            scopes=new.scopes,
            expires_at=None if new.expires is None else moment(new.expires, now),
            rate=None if new.rate_limit is None else Rate.parse(new.rate_limit),
            daily_quota=new.daily_quota,
        ),
        creator=await authenticator.access.keys.get(principal.key_id),
    )
    return IssuedKey.of(issued.key, now, key=issued.text)


@router.get(
    "",
    summary="List the keys of the tenant",
    description="Oldest first, including expired and revoked keys.",
    responses=_KEYS_OFF,
)
@requires(Scope.ADMIN)
async def list_keys(principal: Principal, authenticator: KeyAuthenticator) -> KeyList:
    found = await _keys(authenticator).list(principal.tenant)
    now = authenticator.clock()
    return KeyList(keys=[Key.of(key, now) for key in found])


@router.delete(
    "/{key_id}",
    status_code=204,
    summary="Revoke a key",
    description="Takes effect in every process within a minute. Repeating it changes nothing.",
    responses={**refusals(errors.NotFound, errors.InvalidRequest), **_KEYS_OFF},
)
@requires(Scope.ADMIN)
async def revoke_key(
    principal: Principal, authenticator: KeyAuthenticator, key_id: str
) -> Response:
    await _keys(authenticator).revoke(key_id, principal.tenant)
    authenticator.forget(key_id)
    return Response(status_code=204)


@router.post(
    "/{key_id}/rotate",
    summary="Give a key a new text",
    description="Only the text of the key changes. The old text stays valid for `overlap_seconds`.",
    responses={**refusals(errors.NotFound), **_BODY, **_KEYS_OFF},
)
@requires(Scope.ADMIN)
async def rotate_key(
    principal: Principal,
    authenticator: KeyAuthenticator,
    key_id: str,
    rotation: Annotated[KeyRotation, Body(default_factory=KeyRotation)],
) -> IssuedKey:
    overlap = timedelta(seconds=rotation.overlap_seconds)
    issued = await _keys(authenticator).rotate(key_id, overlap, principal.tenant)
    authenticator.forget(key_id)
    return IssuedKey.of(issued.key, authenticator.clock(), key=issued.text)


def _keys(authenticator: Authenticator) -> Keys:
    return Keys(authenticator.access.keys, authenticator.hasher, authenticator.clock)
