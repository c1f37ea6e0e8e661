"""`/api/v1/webhooks`: the webhooks of a tenant, for keys with the scope `admin`.

Reading requires that scope, too: a receiver's URL often contains a secret.
"""

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request, Response
from pydantic import ConfigDict, Field, StrictBool

from app.auth.requires import requires
from app.auth.route import AuthenticatedRoute
from app.http.json_body import JsonBody
from app.http.openapi import refusals
from app.services import services_of
from app.webhooks.representation import IssuedWebhook, Webhook, WebhookList, WebhookTest
from app.webhooks.service import DEFAULT_OVERLAP, LONGEST_OVERLAP, Webhooks
from core import errors
from core.domain.principals import Principal, Scope
from core.domain.webhooks import JOB_EVENTS, Change, Event, JobEvent
from core.observability.request_middleware import add_headers
from core.outbound.http_client import MAX_URL_LENGTH, PrivateAddress

router = APIRouter(prefix="/api/v1/webhooks", tags=["webhooks"], route_class=AuthenticatedRoute)

MERGE_PATCH = "application/merge-patch+json"
PATCH_TYPES = (MERGE_PATCH, "application/json")

Url = Annotated[
    str, Field(max_length=MAX_URL_LENGTH, description="An https URL with a public address")
]
Events = Annotated[
    frozenset[JobEvent], Field(min_length=1, description="The events to send; all by default")
]
Description = Annotated[str, Field(max_length=200, description="A note of your own")]

_BODY = refusals(errors.InvalidRequest, PrivateAddress, errors.Unavailable)
_FOUND = refusals(errors.NotFound, errors.InvalidRequest, errors.Unavailable)


class WebhookCreation(JsonBody):
    """A webhook to create for the caller's tenant."""

    url: Url
    events: Events = frozenset(JobEvent)
    description: Description = ""


def _without_defaults(schema: dict[str, Any]) -> None:
    """Remove the defaults: a member that is missing in a patch does not change."""
    for member in schema["properties"].values():
        member.pop("default", None)


class WebhookPatch(JsonBody):
    """Changes of a webhook (RFC 7396). Null restores the default of a member."""

    model_config = ConfigDict(json_schema_extra=_without_defaults)

    url: Url = ""
    events: Events | None = None
    description: Description | None = None
    enabled: Annotated[
        StrictBool | None, Field(description="Whether events are sent; true by default")
    ] = None

    def change(self) -> Change:
        """Return the changes of those members that the patch contains."""
        values = Change(
            url=self.url,
            events=JOB_EVENTS if self.events is None else frozenset(map(Event, self.events)),
            description=self.description or "",
            enabled=self.enabled is not False,
        )
        return Change(**{name: getattr(values, name) for name in self.model_fields_set})


class SecretRotation(JsonBody):
    """How to rotate the secret of a webhook."""

    overlap_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=int(LONGEST_OVERLAP.total_seconds()),
            description="How long the old secret signs beside the new one",
        ),
    ] = int(DEFAULT_OVERLAP.total_seconds())


async def _check_patch_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in PATCH_TYPES:
        add_headers(request.scope, ((b"accept-patch", MERGE_PATCH.encode()),))  # RFC 5789, 2.2
        raise errors.UnsupportedMediaType(
            "Send a JSON merge patch.", extra={"accepted": list(PATCH_TYPES)}
        )


@router.post(
    "",
    status_code=201,
    summary="Create a webhook",
    description="From now on, events about the tenant's jobs are sent to it. Only this response "
    "contains its secret. docs/notifications.md describes how to verify events.",
    responses={**_BODY, **refusals(errors.Conflict)},
)
@requires(Scope.ADMIN)
async def create_webhook(
    request: Request, principal: Principal, new: WebhookCreation
) -> IssuedWebhook:
    issued = await _webhooks(request).create(
        principal, new.url, frozenset(map(Event, new.events)), new.description
    )
    return IssuedWebhook.of(issued.webhook, secret=issued.secret)


@router.get(
    "",
    summary="List the webhooks of the tenant",
    description="Oldest first, including disabled webhooks.",
    responses=refusals(errors.Unavailable),
)
@requires(Scope.ADMIN)
async def list_webhooks(request: Request, principal: Principal) -> WebhookList:
    found = await _webhooks(request).list(principal.tenant)
    return WebhookList(webhooks=[Webhook.of(each) for each in found])


@router.get(
    "/{webhook_id}",
    summary="Get a webhook",
    description="Same as in the list.",
    responses=_FOUND,
)
@requires(Scope.ADMIN)
async def get_webhook(request: Request, principal: Principal, webhook_id: str) -> Webhook:
    return Webhook.of(await _webhooks(request).get(principal.tenant, webhook_id))


@router.patch(
    "/{webhook_id}",
    summary="Change a webhook",
    description="A JSON merge patch (RFC 7396): a missing member stays as it is, and null restores "
    "its default. `enabled` turns the webhook off and on. Events that were not delivered yet go to "
    "the new URL. The secret does not change.",
    responses={
        **_BODY,
        **refusals(errors.NotFound, errors.UnsupportedMediaType),
    },
    dependencies=[Depends(_check_patch_type)],
)
@requires(Scope.ADMIN)
async def update_webhook(
    request: Request,
    principal: Principal,
    webhook_id: str,
    patch: Annotated[
        WebhookPatch,
        Body(
            media_type=MERGE_PATCH,
            openapi_examples={
                "another receiver": {"value": {"url": "https://example.com/new-hooks"}},
                "failures only": {"value": {"events": ["job.failed"]}},
                "off": {"value": {"enabled": False}},
                "on, with all events": {"value": {"enabled": True, "events": sorted(JOB_EVENTS)}},
            },
        ),
    ],
) -> Webhook:
    changed = await _webhooks(request).change(principal.tenant, webhook_id, patch.change())
    return Webhook.of(changed)


@router.post(
    "/{webhook_id}/rotate",
    summary="Give a webhook a new secret",
    description="Events carry signatures of both secrets until `overlap_seconds` have passed.",
    responses={**_FOUND, **refusals(errors.InvalidRequest)},
)
@requires(Scope.ADMIN)
async def rotate_webhook_secret(
    request: Request,
    principal: Principal,
    webhook_id: str,
    rotation: Annotated[SecretRotation, Body(default_factory=SecretRotation)],
) -> IssuedWebhook:
    overlap = timedelta(seconds=rotation.overlap_seconds)
    issued = await _webhooks(request).rotate(principal.tenant, webhook_id, overlap)
    return IssuedWebhook.of(issued.webhook, secret=issued.secret)


@router.post(
    "/{webhook_id}/test",
    status_code=202,
    summary="Send a test event",
    description="Sends an event `webhook.test` the same way as every other event.",
    responses={**_FOUND, **refusals(errors.Conflict)},
)
@requires(Scope.ADMIN)
async def test_webhook(request: Request, principal: Principal, webhook_id: str) -> WebhookTest:
    message_id = await _webhooks(request).test(principal.tenant, webhook_id)
    return WebhookTest(message_id=message_id)


@router.post(
    "/{webhook_id}/enable",
    summary="Enable a webhook",
    description="A webhook is disabled by a change, or because its receiver answered 410. "
    "Repeating it changes nothing.",
    responses=_FOUND,
)
@requires(Scope.ADMIN)
async def enable_webhook(request: Request, principal: Principal, webhook_id: str) -> Webhook:
    changed = await _webhooks(request).change(principal.tenant, webhook_id, Change(enabled=True))
    return Webhook.of(changed)


@router.delete(
    "/{webhook_id}",
    status_code=204,
    summary="Delete a webhook",
    description="No further events are sent, not even those that were accepted for delivery.",
    responses=_FOUND,
)
@requires(Scope.ADMIN)
async def delete_webhook(request: Request, principal: Principal, webhook_id: str) -> Response:
    await _webhooks(request).delete(principal.tenant, webhook_id)
    return Response(status_code=204)


def _webhooks(request: Request) -> Webhooks:
    return services_of(request).webhooks
