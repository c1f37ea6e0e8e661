"""`/api/v1/usage`: what a key, or all of a tenant's keys, asked for, by the day."""

from datetime import timedelta

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app.auth.requires import requires
from app.http.openapi import refusals
from app.http.responses import json_answer
from app.services import services_of
from core import errors
from core.domain.principals import Principal, Scope
from core.domain.usage import Usage
from core.http.request_route import RequestRoute

router = APIRouter(prefix="/api/v1/usage", tags=["keys"], route_class=RequestRoute)

DEFAULT_DAYS, MOST_DAYS = 30, 366


class UsageRow(BaseModel):
    """One key on one day."""

    day: str = Field(description="UTC", examples=["2026-11-21"])
    key_id: str
    requests: int = Field(description="Let through")
    images: int = Field(description="Uploaded, known ones included")
    bytes: int = Field(description="Of those images")
    refused: int = Field(description="Beyond a limit (429)")


class UsageBody(BaseModel):
    tenant: str
    since: str
    usage: list[UsageRow]


@router.get(
    "",
    summary="What was asked for",
    description="By the key that asks; with `keys=all` by every key of its tenant, for which it "
    "needs the scope `admin`. Counts are written every ten seconds: other processes' newest are "
    "missing.",
    responses={
        200: {"model": UsageBody},
        **refusals(errors.InvalidRequest, errors.Conflict),
    },
    openapi_extra={
        "parameters": [
            {
                "name": "days",
                "in": "query",
                "schema": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": MOST_DAYS,
                    "default": DEFAULT_DAYS,
                },
                "description": "How many days, today included",
            },
            {
                "name": "keys",
                "in": "query",
                "schema": {"type": "string", "enum": ["own", "all"], "default": "own"},
                "description": "Whose usage",
            },
        ]
    },
)
@requires(Scope.READ)
async def usage(request: Request, principal: Principal) -> Response:
    authenticator = services_of(request).authenticator
    if authenticator is None:
        raise errors.Conflict("This service asks for no keys (API_KEYS=off), and counts none.")
    days = _days(request.query_params.get("days", str(DEFAULT_DAYS)))
    whose = request.query_params.get("keys", "own")
    if whose not in ("own", "all"):
        raise errors.InvalidRequest("keys is own or all.", extra={"field": "keys"})
    if whose == "all" and Scope.ADMIN not in principal.scopes:
        raise errors.Forbidden(
            "The usage of other keys needs a key with the scope 'admin'.",
            extra={"scope": Scope.ADMIN.value},
        )
    await authenticator.write_usage()
    since = authenticator.clock().date() - timedelta(days=days - 1)
    found = await authenticator.access.usage.read(principal.tenant, since)
    rows = [_row(u) for u in found if whose == "all" or u.key_id == principal.key_id]
    body = {"tenant": principal.tenant, "since": since.isoformat(), "usage": rows}
    return json_answer(body)


def _days(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= MOST_DAYS):
        raise errors.InvalidRequest(
            f"days is a number between 1 and {MOST_DAYS}.", extra={"field": "days"}
        )
    return int(text)


def _row(usage: Usage) -> dict[str, object]:
    return {
        "day": usage.day.isoformat(),
        "key_id": usage.key_id,
        "requests": usage.requests,
        "images": usage.images,
        "bytes": usage.bytes,
        "refused": usage.refused,
    }
