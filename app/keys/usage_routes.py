"""`/api/v1/usage`: the daily usage of a key, or of all keys of a tenant."""

from datetime import date, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from app.auth.requires import requires
from app.auth.route import AuthenticatedRoute
from app.http.openapi import refusals
from app.http.parameters import Digits
from app.services import services_of
from core import errors
from core.domain.principals import Principal, Scope

router = APIRouter(prefix="/api/v1/usage", tags=["keys"], route_class=AuthenticatedRoute)

DEFAULT_DAYS, MAX_DAYS = 30, 366


class UsageRow(BaseModel):
    """The usage of one key on one day."""

    day: date = Field(description="In UTC", examples=["2026-11-21"])
    key_id: str
    requests: int = Field(description="Requests that were let through")
    images: int = Field(description="Uploaded images, including known ones")
    bytes: int = Field(description="Size of these images")
    refused: int = Field(description="Requests beyond a limit (429)")


class UsageReport(BaseModel):
    """The usage of a tenant's keys."""

    tenant: str
    since: date = Field(description="The first day, in UTC", examples=["2026-11-21"])
    usage: list[UsageRow]


@router.get(
    "",
    summary="Get the usage by day",
    description="Reports the usage of the caller's key, or with `keys=all` of every key of its "
    "tenant, which requires the scope `admin`. Processes write their counts every ten seconds.",
    responses=refusals(errors.InvalidRequest, errors.Conflict),
)
@requires(Scope.READ)
async def get_usage(
    request: Request,
    principal: Principal,
    days: Annotated[
        Digits, Query(ge=1, le=MAX_DAYS, description="Number of days, including today")
    ] = DEFAULT_DAYS,
    keys: Annotated[Literal["own", "all"], Query(description="Whose usage")] = "own",
) -> UsageReport:
    authenticator = services_of(request).authenticator
    if authenticator is None:
        raise errors.Conflict("This service requires no keys (API_KEYS=off), and counts no usage.")
    if keys == "all" and Scope.ADMIN not in principal.scopes:
        raise errors.Forbidden(
            "The usage of other keys needs a key with the scope 'admin'.",
            extra={"scope": Scope.ADMIN.value},
        )
    await authenticator.write_usage()
    since = authenticator.clock().date() - timedelta(days=days - 1)
    found = await authenticator.access.usage.read(principal.tenant, since)
    rows = [
        UsageRow(
            day=each.day,
            key_id=each.key_id,
            requests=each.requests,
            images=each.images,
            bytes=each.bytes,
            refused=each.refused,
        )
        for each in found
        if keys == "all" or each.key_id == principal.key_id
    ]
    return UsageReport(tenant=principal.tenant, since=since, usage=rows)
