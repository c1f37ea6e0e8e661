"""Dead letters as clients see them."""

import base64
from typing import Any, Self

from pydantic import BaseModel, Field

from app.http.pagination import NextCursor
from app.http.timestamps import Timestamp
from core.domain import dead_letters as domain
from core.services.dead_letter_replay import Replay, Replays


class LetterError(BaseModel):
    """Why the last delivery failed."""

    code: str = Field(examples=["inference_failed"])
    detail: str = Field(examples=["The model failed on this image."])


class DeadLetter(BaseModel):
    """A message that used up its delivery attempts."""

    id: str = Field(pattern=f"^{domain.LETTER_ID.pattern}$")
    image_hash: str | None = Field(description="The image, if the message is about one")
    model: str | None
    attributes: dict[str, str] = Field(description="The attributes of the message")
    payload_bytes: int = Field(ge=0, description="The size of the message's payload")
    attempts: int = Field(ge=0, description="Delivery attempts; 0 if the queue did not say")
    error: LetterError
    published_at: Timestamp = Field(description="When the message was first published")
    dead_lettered_at: Timestamp = Field(description="When the message used up its attempts")
    resolved_at: Timestamp | None = Field(
        description="When it was replayed, or found to need no replay"
    )

    @classmethod
    def of(cls, letter: domain.DeadLetter, **more: Any) -> Self:
        return cls(
            id=letter.id,
            image_hash=letter.attributes.get("image_hash"),
            model=letter.attributes.get("model"),
            attributes=dict(letter.attributes),
            payload_bytes=letter.payload_size,
            attempts=letter.attempts,
            error=LetterError(code=letter.code, detail=letter.detail),
            published_at=letter.published_at,
            dead_lettered_at=letter.died_at,
            resolved_at=letter.resolved_at,
            **more,
        )


class DeadLetterWithPayload(DeadLetter):
    """A dead letter with the payload of its message."""

    payload: str = Field(description="In base64; at most the first 256 KiB")

    @classmethod
    def of(cls, letter: domain.DeadLetter, **more: Any) -> Self:
        return super().of(letter, payload=base64.b64encode(letter.payload).decode(), **more)


class DeadLetterList(BaseModel):
    """A page of dead letters, newest first."""

    dead_letters: list[DeadLetter]
    next_cursor: NextCursor


class ReplayResult(BaseModel):
    """The result of a replay."""

    outcome: Replay = Field(
        description="`replayed`: a new attempt was started. `resolved`: none was needed."
    )


class ReplayCounts(BaseModel):
    """The number of replays by their result."""

    replayed: int
    resolved: int
    busy: int = Field(description="A worker is processing the image: retry later")
    unreadable: int = Field(description="The message is about no image: delete the dead letter")
    next_cursor: str | None = Field(description="`cursor` of the next call; null at the end")

    @classmethod
    def of(cls, replays: Replays, next_cursor: str | None) -> Self:
        counts = {outcome.value: replays.counts[outcome] for outcome in Replay}
        return cls(**counts, next_cursor=next_cursor)
