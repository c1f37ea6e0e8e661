"""`/api/v1/dead-letters`: messages that used up their delivery attempts, for operators."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field

from app.auth.requires import requires
from app.auth.route import AuthenticatedRoute
from app.dead_letters.representation import (
    DeadLetter,
    DeadLetterList,
    DeadLetterWithPayload,
    ReplayCounts,
    ReplayResult,
)
from app.http.openapi import refusals
from app.http.pagination import POSITION, decode_cursor, encode_cursor
from app.http.parameters import Cursor, Digits, Time
from app.services import services_of
from core.domain.dead_letters import CODE, LETTER_ID, LetterFilter, LetterKey
from core.domain.principals import Principal, Scope
from core.errors import Conflict, InvalidRequest, NotFound, Unavailable
from core.http.validation_messages import explain_pattern
from core.services.dead_letter_replay import Replay, replay, replay_all

DEFAULT_LIMIT, MAX_LIMIT = 50, 200

router = APIRouter(
    prefix="/api/v1/dead-letters", tags=["dead letters"], route_class=AuthenticatedRoute
)

LetterId = Annotated[
    str,
    Path(
        alias="id",
        pattern=explain_pattern(f"^{LETTER_ID.pattern}$", "must be the id of a dead letter"),
    ),
]
_SELECTED = refusals(InvalidRequest, Unavailable)
_FOUND = refusals(NotFound, InvalidRequest, Unavailable)


class Selection(BaseModel):
    """Which dead letters a request is about."""

    code: Annotated[
        str,
        Field(
            pattern=explain_pattern(
                f"^({CODE.pattern})?$", "must be an error code, such as gave_up"
            ),
            description="Only with this error code",
        ),
    ] = ""
    since: Annotated[Time, Field(description="Only from this time on")] = None
    before: Annotated[Time, Field(description="Only from before this time")] = None
    cursor: Cursor = ""
    limit: Annotated[Digits, Field(ge=1, le=MAX_LIMIT, description="Largest number")] = (
        DEFAULT_LIMIT
    )

    resolved: Annotated[
        Literal["true", "false"], Field(description="Whether to include resolved ones")
    ] = "false"

    def filter(self, tenant: str) -> LetterFilter:
        return LetterFilter(tenant, self.code, self.since, self.before, self.resolved == "true")

    @property
    def after(self) -> str:
        return decode_cursor(self.cursor, POSITION)


@router.get(
    "",
    summary="List dead letters",
    description="Newest first. Resolved ones are included with `resolved=true`.",
    responses=_SELECTED,
)
@requires(Scope.ADMIN)
async def list_dead_letters(
    request: Request, principal: Principal, selection: Annotated[Selection, Query()]
) -> DeadLetterList:
    letters = await services_of(request).backend.dead_letters.list(
        selection.filter(principal.tenant), selection.limit, selection.after
    )
    more = len(letters) == selection.limit
    return DeadLetterList(
        dead_letters=[DeadLetter.of(letter) for letter in letters],
        next_cursor=encode_cursor(letters[-1].sort_key) if more else None,
    )


@router.post(
    "/replay",
    summary="Replay several dead letters",
    description="Starts new attempts for the selected dead letters, newest first, at most `limit`. "
    "Repeating it is safe.",
    responses=_SELECTED,
)
@requires(Scope.ADMIN)
async def replay_dead_letters(
    request: Request, principal: Principal, selection: Annotated[Selection, Query()]
) -> ReplayCounts:
    replays = await replay_all(
        services_of(request).backend,
        selection.filter(principal.tenant),
        selection.limit,
        selection.after,
    )
    return ReplayCounts.of(replays, encode_cursor(replays.after) if replays.after else None)


@router.get(
    "/{id}",
    summary="Get a dead letter",
    description="Same as in the list, and the payload of the message.",
    responses=_FOUND,
)
@requires(Scope.ADMIN)
async def get_dead_letter(
    request: Request, principal: Principal, letter_id: LetterId
) -> DeadLetterWithPayload:
    key = LetterKey(principal.tenant, letter_id)
    letter = await services_of(request).backend.dead_letters.get(key)
    if letter is None:
        raise NotFound("There is no such dead letter.")
    return DeadLetterWithPayload.of(letter)


@router.post(
    "/{id}/replay",
    summary="Replay a dead letter",
    description="Starts a new attempt for the image of the dead letter. If the image has a result "
    "by now, the dead letter is resolved. Repeating it changes nothing.",
    responses={**_FOUND, **refusals(Conflict)},
)
@requires(Scope.ADMIN)
async def replay_dead_letter(
    request: Request, principal: Principal, letter_id: LetterId
) -> ReplayResult:
    outcome = await replay(services_of(request).backend, principal.tenant, letter_id)
    if outcome is Replay.BUSY:
        raise Conflict("A worker is processing the image. Retry later.", retry_after=5)
    if outcome is Replay.UNREADABLE:
        raise Conflict("The message is about no image. The dead letter can only be deleted.")
    return ReplayResult(outcome=outcome)


@router.delete(
    "/{id}",
    status_code=204,
    summary="Delete a dead letter",
    description="The record of its image does not change.",
    responses=_FOUND,
)
@requires(Scope.ADMIN)
async def delete_dead_letter(
    request: Request, principal: Principal, letter_id: LetterId
) -> Response:
    key = LetterKey(principal.tenant, letter_id)
    if not await services_of(request).backend.dead_letters.delete(key):
        raise NotFound("There is no such dead letter.")
    return Response(status_code=204)
