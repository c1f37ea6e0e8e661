"""`POST /api/v1/tickets`: tickets for streams that cannot send headers."""

import secrets
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from app.auth.requires import requires
from app.auth.route import AuthenticatedRoute
from app.http.asgi import WEBSOCKET_PREFIX
from app.http.json_body import JsonBody
from app.http.openapi import refusals
from app.http.timestamps import Timestamp
from app.services import services_of
from core import errors
from core.domain.messages import JOB_ID
from core.domain.principals import Principal, Scope
from core.domain.records import IMAGE_HASH
from core.domain.tickets import TicketSigner

_PATH = (
    f"^(/api/v1/images/{IMAGE_HASH.pattern}/stream|/api/v1/jobs/{JOB_ID.pattern}/stream"
    f"|{WEBSOCKET_PREFIX}jobs/{JOB_ID.pattern})$"
)
# Without keys, streams need no ticket. Clients that ask for one nevertheless need no other code.
_ANONYMOUS = TicketSigner(secrets.token_bytes(32))


class TicketRequest(JsonBody):
    """The stream that a ticket is for."""

    path: Annotated[str, Field(pattern=_PATH, description="The path of the stream, without query")]


class StreamTicket(BaseModel):
    """A ticket for one stream."""

    ticket: str = Field(description="The value of the query parameter `ticket`")
    expires_at: Timestamp = Field(description="When the ticket opens no more streams")
    url: str = Field(description="The stream's URL with the ticket")


router = APIRouter(prefix="/api/v1/tickets", tags=["streams"], route_class=AuthenticatedRoute)


@router.post(
    "",
    status_code=201,
    summary="Create a ticket for a stream",
    description="For `EventSource` and `WebSocket` in browsers, which send no headers: the query "
    "parameter `ticket` replaces the key, for one stream and one minute. A stream that is open "
    "stays open. The ticket permits what the key permits.",
    responses=refusals(errors.InvalidRequest, errors.Unavailable),
)
@requires(Scope.READ)
async def create_ticket(
    request: Request, principal: Principal, body: TicketRequest
) -> StreamTicket:
    services = services_of(request)
    authenticator = services.authenticator
    tickets = _ANONYMOUS if authenticator is None else authenticator.tickets
    ticket = tickets.issue(principal.key_id, body.path, services.clock())
    return StreamTicket(
        ticket=ticket.text,
        expires_at=ticket.expires_at,
        url=f"{services.settings.public_url}{body.path}?ticket={ticket.text}",
    )
