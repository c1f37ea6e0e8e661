"""`/api/v1/dead-letters`: messages that used up their deliveries, for whoever operates this."""

import base64
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app.auth.requires import requires
from app.http.openapi import query_parameter, refusals
from app.http.pagination import POSITION, decode_cursor, encode_cursor, page_limit
from app.http.responses import NO_STORE, json_answer
from app.services import services_of
from core.backends import Backend
from core.clock import rfc3339
from core.domain.dead_letters import CODE, LETTER_ID, DeadLetter, LetterFilter, LetterKey
from core.domain.principals import Principal, Scope
from core.errors import Conflict, InvalidRequest, NotFound, Unavailable
from core.http.request_route import RequestRoute
from core.services.dead_letter_replay import Replay, replay, replay_all

DEFAULT_LIMIT, LARGEST_LIMIT = 50, 200


class LetterError(BaseModel):
    """Why the last delivery failed."""

    code: str = Field(examples=["inference_failed"])
    detail: str = Field(examples=["The model failed on this image."])


class LetterBody(BaseModel):
    """A message that used up its deliveries."""

    id: str = Field(pattern="^[0-9a-f]{32}$")
    image_hash: str | None = Field(description="The image, where the message names one")
    model: str | None
    attributes: dict[str, str] = Field(description="The message's own, as they were published")
    payload_bytes: int = Field(ge=0, description="Size of the message's payload")
    attempts: int = Field(ge=0, description="Deliveries; 0 where the queue did not say")
    error: LetterError
    published_at: str = Field(description="When the message was first published")
    dead_lettered_at: str = Field(description="When it was given up")
    resolved_at: str | None = Field(description="When it was replayed, or found to be settled")


class FullLetterBody(LetterBody):
    """A letter with its payload."""

    payload: str = Field(description="Base64; at most its first 256 KiB")


class LettersBody(BaseModel):
    """A page of letters, newest first."""

    dead_letters: list[LetterBody]
    next_cursor: str | None = Field(
        description="What `cursor` of the next page is; null at the end"
    )


class ReplayBody(BaseModel):
    """How a replay ended."""

    outcome: Replay = Field(
        description="`replayed`: a new attempt is on its way. `resolved`: nothing was left to do."
    )


class ReplaysBody(BaseModel):
    """How many replays ended how."""

    replayed: int
    resolved: int
    busy: int = Field(description="A worker still owns the image: later")
    unreadable: int = Field(description="The message names no image: delete the letter")
    next_cursor: str | None = Field(description="Where the next call goes on; null at the end")


_SELECTION = [
    query_parameter("code", "Only of this error code", pattern=f"^{CODE.pattern}$"),
    query_parameter("since", "Only those given up at this time or later", format="date-time"),
    query_parameter("before", "Only those given up before this time", format="date-time"),
    query_parameter("cursor", "`next_cursor` of the answer before"),
    query_parameter("limit", "How many", type="integer", minimum=1, maximum=LARGEST_LIMIT),
]
_LETTER_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{LETTER_ID.pattern}$"},
}
_LIST_REFUSALS = refusals(InvalidRequest, Unavailable)
_LETTER_REFUSALS = refusals(NotFound, InvalidRequest, Unavailable)

# As the images' routes: the request alone, documented by hand.
router = APIRouter(prefix="/api/v1/dead-letters", tags=["dead letters"], route_class=RequestRoute)


@router.get(
    "",
    summary="Messages that failed for good",
    description="Newest first. Those that are resolved only with `resolved=true`.",
    responses={200: {"model": LettersBody}, **_LIST_REFUSALS},
    openapi_extra={
        "parameters": [
            *_SELECTION,
            query_parameter("resolved", "Also those that are resolved", enum=["true", "false"]),
        ]
    },
)
@requires(Scope.ADMIN)
async def list_letters(request: Request, principal: Principal) -> Response:
    wanted, limit, after = selection(request, principal.tenant)
    letters = await _backend(request).dead_letters.list(wanted, limit, after)
    more = len(letters) == limit
    return json_answer(
        {
            "dead_letters": [letter_document(letter) for letter in letters],
            "next_cursor": encode_cursor(letters[-1].sort_key) if more else None,
        }
    )


@router.post(
    "/replay",
    summary="Start new attempts",
    description="Of the letters that the parameters select, newest first, at most `limit`. Safe to "
    "repeat.",
    responses={200: {"model": ReplaysBody}, **_LIST_REFUSALS},
    openapi_extra={"parameters": _SELECTION},
)
@requires(Scope.ADMIN)
async def replay_letters(request: Request, principal: Principal) -> Response:
    wanted, limit, after = selection(request, principal.tenant)
    done = await replay_all(_backend(request), wanted, limit, after)
    counts = {outcome.value: done.counts[outcome] for outcome in Replay}
    return json_answer({**counts, "next_cursor": encode_cursor(done.after) if done.after else None})


@router.get(
    "/{id}",
    summary="One letter",
    description="As the list has it, and with its payload.",
    responses={200: {"model": FullLetterBody}, **_LETTER_REFUSALS},
    openapi_extra={"parameters": [_LETTER_ID]},
)
@requires(Scope.ADMIN)
async def read_letter(request: Request, principal: Principal) -> Response:
    letter = await _backend(request).dead_letters.get(LetterKey(principal.tenant, _id(request)))
    if letter is None:
        raise NotFound("There is no such dead letter.")
    payload = base64.b64encode(letter.payload).decode()
    return json_answer({**letter_document(letter), "payload": payload})


@router.post(
    "/{id}/replay",
    summary="Start a new attempt",
    description="Of the letter's image. A letter whose image has succeeded meanwhile is resolved. "
    "Repeating it changes nothing.",
    responses={200: {"model": ReplayBody}, **_LETTER_REFUSALS, **refusals(Conflict)},
    openapi_extra={"parameters": [_LETTER_ID]},
)
@requires(Scope.ADMIN)
async def replay_letter(request: Request, principal: Principal) -> Response:
    outcome = await replay(_backend(request), principal.tenant, _id(request))
    if outcome is Replay.BUSY:
        raise Conflict("A worker is still classifying the image; try again.", retry_after=5)
    if outcome is Replay.UNREADABLE:
        raise Conflict("The letter names no image: it can only be deleted.")
    return json_answer({"outcome": outcome})


@router.delete(
    "/{id}",
    status_code=204,
    summary="Delete a letter",
    description="Its image's record stays as it is.",
    responses={204: {"description": "Gone"}, **_LETTER_REFUSALS},
    openapi_extra={"parameters": [_LETTER_ID]},
)
@requires(Scope.ADMIN)
async def delete_letter(request: Request, principal: Principal) -> Response:
    if not await _backend(request).dead_letters.delete(LetterKey(principal.tenant, _id(request))):
        raise NotFound("There is no such dead letter.")
    return Response(status_code=204, headers={"Cache-Control": NO_STORE})


def selection(request: Request, tenant: str) -> tuple[LetterFilter, int, str]:
    """Which letters, how many, and the position to go on from. Raises InvalidRequest."""
    query = request.query_params
    code = query.get("code", "")
    if code and not CODE.fullmatch(code):
        raise _invalid("code", "has lower-case letters, digits and underscores")
    limit = page_limit(request, DEFAULT_LIMIT, LARGEST_LIMIT)
    resolved = query.get("resolved", "false")
    if resolved not in ("true", "false"):
        raise _invalid("resolved", "is true or false")
    wanted = LetterFilter(
        tenant, code, _moment(query, "since"), _moment(query, "before"), resolved == "true"
    )
    return wanted, limit, decode_cursor(query.get("cursor", ""), POSITION)


def letter_document(letter: DeadLetter) -> dict[str, object]:
    """A letter as clients see it, without its payload."""
    return {
        "id": letter.id,
        "image_hash": letter.attributes.get("image_hash"),
        "model": letter.attributes.get("model"),
        "attributes": dict(letter.attributes),
        "payload_bytes": letter.payload_size,
        "attempts": letter.attempts,
        "error": {"code": letter.code, "detail": letter.detail},
        "published_at": rfc3339(letter.published_at),
        "dead_lettered_at": rfc3339(letter.died_at),
        "resolved_at": letter.resolved_at and rfc3339(letter.resolved_at),
    }


def _moment(query: Any, name: str) -> datetime | None:
    text = query.get(name, "")
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _invalid(name, "is a time as in 2026-11-21T09:30:00Z") from None
    if not 1970 < moment.year < 2200:
        raise _invalid(name, "is out of range")
    return moment


def _id(request: Request) -> str:
    id_: str = request.path_params["id"]
    if not LETTER_ID.fullmatch(id_):
        raise _invalid("id", "is 32 hex digits in lower case")
    return id_


def _invalid(field: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"The parameter {field} {rule}.", extra={"field": field})


def _backend(request: Request) -> Backend:
    return services_of(request).backend
