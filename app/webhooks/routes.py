"""`/api/v1/webhooks`: where a tenant is told of what happens, for who may administer it.

Reading them needs that scope too: the address of a receiver often lets in whoever knows it.
"""

from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from app.auth.requires import requires
from app.http.json_body import body_schema, read_json
from app.http.openapi import Responses, refusals
from app.http.responses import NO_STORE, json_answer
from app.services import services_of
from app.webhooks.service import DEFAULT_OVERLAP, LONGEST_OVERLAP, Issued, Webhooks, document
from core import errors
from core.domain.principals import Principal, Scope
from core.domain.webhooks import JOB_EVENTS, WEBHOOK_ID, Change, Event
from core.http.request_route import RequestRoute
from core.observability.request_middleware import add_headers
from core.outbound.http_client import LONGEST_URL, PrivateAddress

router = APIRouter(prefix="/api/v1/webhooks", tags=["webhooks"], route_class=RequestRoute)

JobEvent = Literal[Event.JOB_COMPLETED, Event.JOB_FAILED, Event.JOB_CANCELLED]


Url = Annotated[
    str,
    Field(max_length=LONGEST_URL, description="https, to an address of the public internet"),
]
Events = Annotated[
    frozenset[JobEvent], Field(min_length=1, description="What it is told; all by default")
]
Description = Annotated[str, Field(max_length=200, description="For yourselves")]

MERGE_PATCH = "application/merge-patch+json"
PATCHES = (MERGE_PATCH, "application/json")


class NewWebhook(BaseModel):
    """A webhook to be made, for the tenant of the key that asks."""

    model_config = ConfigDict(extra="forbid")

    url: Url
    events: Events = frozenset({Event.JOB_COMPLETED, Event.JOB_FAILED, Event.JOB_CANCELLED})
    description: Description = ""


def _without_defaults(schema: dict[str, Any]) -> None:
    """What is not in a patch stays as it is; ours stand for that and tell nobody else anything."""
    for member in schema["properties"].values():
        member.pop("default", None)


class WebhookPatch(BaseModel):
    """What is to be different (RFC 7396): null brings a member's default back."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_without_defaults)

    url: Url = ""
    events: Events | None = None
    description: Description | None = None
    enabled: Annotated[
        StrictBool | None, Field(description="Whether it is told of anything; true by default")
    ] = None

    def change(self) -> Change:
        """Of the members that are there."""
        there = self.model_fields_set
        plain = Change(
            url=self.url,
            events=JOB_EVENTS if self.events is None else frozenset(self.events),
            description=self.description or "",
            enabled=self.enabled is not False,
        )
        return Change(**{name: getattr(plain, name) for name in there})


class SecretRotation(BaseModel):
    """How a webhook's secret is rotated."""

    model_config = ConfigDict(extra="forbid")

    overlap_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=int(LONGEST_OVERLAP.total_seconds()),
            description="How long the old secret signs beside the new one",
        ),
    ] = int(DEFAULT_OVERLAP.total_seconds())


class DeliveryBody(BaseModel):
    """How the last attempt ended to tell a webhook of something."""

    at: str
    event: Event
    status: int | None = Field(description="Of its answer")
    error: str | None = Field(description="Where there was none: `no_answer`, `private_address`")


class WebhookBody(BaseModel):
    """A webhook, without its secret."""

    id: str
    url: str
    description: str
    events: list[Event]
    enabled: bool
    disabled_at: str | None
    disabled_reason: str | None = Field(description="As in: it answered 410")
    created_at: str
    created_by: str | None = Field(description="The id of the key that made it")
    rotated_at: str | None
    previous_expires_at: str | None = Field(description="Until when the secret before signs too")
    last_delivery: DeliveryBody | None = Field(
        description="To this URL. One that ended as the one before is noted once a minute"
    )


class IssuedWebhookBody(WebhookBody):
    """A webhook with its secret, which is shown this once."""

    secret: str = Field(description="What its receiver verifies signatures with: `whsec_…`")


class WebhooksBody(BaseModel):
    webhooks: list[WebhookBody]


class WebhookTestBody(BaseModel):
    """A test that is on its way."""

    message_id: str = Field(description="Its `webhook-id` header")


_ID: dict[str, Any] = {
    "parameters": [
        {
            "name": "webhook_id",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": f"^{WEBHOOK_ID.pattern}$"},
        }
    ]
}
_REFUSALS: Responses = refusals(errors.NotFound, errors.Unavailable)


@router.post(
    "",
    status_code=201,
    summary="Make a webhook",
    description="From now on it is told when a job of the tenant's ends. Its secret is in this "
    "answer and nowhere else. docs/notifications.md says how to verify what it is sent.",
    responses={
        201: {"model": IssuedWebhookBody},
        **refusals(
            errors.Conflict,
            errors.InvalidRequest,
            PrivateAddress,
            errors.BodyTooLarge,
            errors.Unavailable,
        ),
    },
    openapi_extra=body_schema(NewWebhook, required=True),
)
@requires(Scope.ADMIN)
async def create(request: Request, principal: Principal) -> Response:
    wanted = await read_json(request, NewWebhook)
    made = await _webhooks(request).create(
        principal, wanted.url, frozenset(wanted.events), wanted.description
    )
    return json_answer(_issued(made), 201)


@router.get(
    "",
    summary="List the tenant's webhooks",
    description="Oldest first, those that are disabled as well.",
    responses={200: {"model": WebhooksBody}, **refusals(errors.Unavailable)},
)
@requires(Scope.ADMIN)
async def list_webhooks(request: Request, principal: Principal) -> Response:
    found = await _webhooks(request).list(principal.tenant)
    return json_answer({"webhooks": [document(each) for each in found]})


@router.get(
    "/{webhook_id}",
    summary="One webhook",
    description="As the list has it.",
    responses={200: {"model": WebhookBody}, **_REFUSALS},
    openapi_extra=_ID,
)
@requires(Scope.ADMIN)
async def read(request: Request, principal: Principal) -> Response:
    return json_answer(document(await _webhooks(request).get(principal.tenant, _id(request))))


@router.patch(
    "/{webhook_id}",
    summary="Change a webhook",
    description="A JSON merge patch (RFC 7396): what is not in it stays, and null brings a "
    "default back. The secret stays; `enabled` may be set to false, and to true again. What is on "
    "its way goes to the new URL.",
    responses={
        200: {"model": WebhookBody},
        **refusals(
            errors.NotFound,
            errors.InvalidRequest,
            PrivateAddress,
            errors.BodyTooLarge,
            errors.UnsupportedMediaType,
            errors.Unavailable,
        ),
    },
    openapi_extra={
        **_ID,
        **body_schema(
            WebhookPatch,
            required=True,
            media_types=PATCHES,
            examples={
                "another receiver": {"url": "https://example.com/new-hooks"},
                "failures only": {"events": ["job.failed"]},
                "off": {"enabled": False},
                "everything again": {"events": None, "enabled": True},
            },
        ),
    },
)
@requires(Scope.ADMIN)
async def change(request: Request, principal: Principal) -> Response:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in PATCHES:
        add_headers(request.scope, ((b"accept-patch", MERGE_PATCH.encode()),))  # RFC 5789, 2.2
        raise errors.UnsupportedMediaType(
            "Send a JSON merge patch.", extra={"accepted": list(PATCHES)}
        )
    patch = await read_json(request, WebhookPatch)
    changed = await _webhooks(request).change(principal.tenant, _id(request), patch.change())
    return json_answer(document(changed))


@router.post(
    "/{webhook_id}/rotate",
    summary="Give a webhook a new secret",
    description="What it is sent carries two signatures until `overlap_seconds` have passed, so "
    "that the receiver can be given the new secret at leisure.",
    responses={
        200: {"model": IssuedWebhookBody},
        **refusals(errors.NotFound, errors.InvalidRequest, errors.BodyTooLarge, errors.Unavailable),
    },
    openapi_extra={**_ID, **body_schema(SecretRotation, required=False)},
)
@requires(Scope.ADMIN)
async def rotate(request: Request, principal: Principal) -> Response:
    rotation = await read_json(request, SecretRotation)
    overlap = timedelta(seconds=rotation.overlap_seconds)
    made = await _webhooks(request).rotate(principal.tenant, _id(request), overlap)
    return json_answer(_issued(made))


@router.post(
    "/{webhook_id}/test",
    status_code=202,
    summary="Send a test",
    description="An event `webhook.test`, on the way that every other takes.",
    responses={202: {"model": WebhookTestBody}, **_REFUSALS, **refusals(errors.Conflict)},
    openapi_extra=_ID,
)
@requires(Scope.ADMIN)
async def test(request: Request, principal: Principal) -> Response:
    message_id = await _webhooks(request).test(principal.tenant, _id(request))
    return json_answer({"message_id": message_id}, 202)


@router.post(
    "/{webhook_id}/enable",
    summary="Enable a webhook",
    description="One that its receiver's 410 has disabled, or a change. Again changes nothing.",
    responses={200: {"model": WebhookBody}, **_REFUSALS},
    openapi_extra=_ID,
)
@requires(Scope.ADMIN)
async def enable(request: Request, principal: Principal) -> Response:
    enabled = Change(enabled=True)
    changed = await _webhooks(request).change(principal.tenant, _id(request), enabled)
    return json_answer(document(changed))


@router.delete(
    "/{webhook_id}",
    status_code=204,
    summary="Delete a webhook",
    description="It is told nothing any more, not even what is on its way.",
    responses={204: {"description": "Gone"}, **_REFUSALS},
    openapi_extra=_ID,
)
@requires(Scope.ADMIN)
async def delete(request: Request, principal: Principal) -> Response:
    await _webhooks(request).delete(principal.tenant, _id(request))
    return Response(status_code=204, headers={"Cache-Control": NO_STORE})


def _webhooks(request: Request) -> Webhooks:
    return services_of(request).webhooks


def _id(request: Request) -> str:
    id_: str = request.path_params["webhook_id"]
    return id_


def _issued(made: Issued) -> dict[str, object]:
    return {**document(made.webhook), "secret": made.secret}
