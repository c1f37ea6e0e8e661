"""The events of one thing that is watched: which of its states a client is told, and when.

The same for every transport: `app.streams.sse` has them as server-sent events,
`app.streams.websocket` as messages of a WebSocket.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from app.auth.requires import Admission
from app.streams.poller import Changes, Signal
from core.errors import GlimpseError, NotFound, Unavailable

HEARTBEAT_SECONDS = 15.0  # proxies take a connection for dead that is silent for a minute
# Between two updates. The last event never waits.
UPDATE_SECONDS = 0.5
FIRST_SECONDS = 5.0  # for the state that a client finds; longer, and the store is down
_ID = re.compile(r"[0-9]{1,19}")


class Kind(StrEnum):
    UPDATE = "update"
    COMPLETE = "complete"
    ERROR = "error"


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """`id` rises from event to event of one thing. `data` is JSON.

    Only an event that says why there are no others has no id, and `refused`: the status of an
    answer that said so.
    """

    id: int | None
    kind: Kind
    data: bytes
    refused: int | None = None

    @property
    def last(self) -> bool:
        """Whether nothing comes after it."""
        return self.kind is not Kind.UPDATE


class LiveEvents:
    """What to tell one client, who has heard everything up to the event `after`.

    Ids rise: a state whose id is not above the last one is left out, so that what a client sees
    never goes back, whatever two machines' clocks say. The last event is the exception: it is
    always told.
    """

    def __init__(
        self,
        changes: Changes[Event],
        admission: Admission,
        after: int | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changes = changes
        self._after = after
        self._now = now
        self._admission = admission
        self._check_at = now() + admission.seconds
        self._next_update = now()
        self._first: Event | None = None

    async def open(self, absent: str) -> bool:
        """Look what is there; False where the client has its last event already.

        Raises NotFound, in the words of `absent`; Unavailable where the store does not say, or we
        are stopping.
        """
        state = await self._changes.newest(FIRST_SECONDS)
        if state is Signal.ABSENT:
            raise NotFound(absent)
        if isinstance(state, Signal):
            raise Unavailable("Cannot look for changes now; try again.")
        # By its very id: a higher one may come from another machine's clock.
        if state.last and state.id == self._after:
            self._changes.end()
            return False
        self._first = state
        return True

    async def next(self) -> Event | Signal:
        """The next event; `Signal.QUIET` where it is time for a sign of life instead.

        `ENDED` after the last event, and where the watch was ended.
        """
        while True:
            state = await self._newest()
            if state is Signal.ENDED:
                return state
            if self._now() >= self._check_at and (refused := await self._refused()) is not None:
                self._changes.end()
                return refusal(refused)
            if state is Signal.ABSENT:
                self._changes.end()
                return gone()
            if isinstance(state, Signal):
                return state
            if state.last:
                self._changes.end()
                return state
            if self._after is None or (state.id is not None and state.id > self._after):
                self._after = state.id
                self._next_update = self._now() + UPDATE_SECONDS
                return state

    async def _refused(self) -> GlimpseError | None:
        """Why the client is let in no longer: a stream must not outlive its key."""
        assert self._admission.check is not None
        try:
            await self._admission.check()
        except Unavailable:
            pass  # it was good, and nobody says that it is not
        except GlimpseError as error:
            return error
        self._check_at = self._now() + self._admission.seconds
        return None

    async def _newest(self) -> Event | Signal:
        """The newest state, an update not before its time."""
        state: Event | Signal | None = self._first
        self._first = None
        if state is None:
            state = await self._changes.newest(HEARTBEAT_SECONDS)
        while isinstance(state, Event) and not state.last:
            pause = self._next_update - self._now()
            if pause <= 0:
                break
            newer = await self._changes.newest(pause)
            if newer is not Signal.QUIET:
                state = newer
        return state


def gone() -> Event:
    """The event that ends the stream of what was deleted meanwhile."""
    return refusal(NotFound("It was deleted."))


def refusal(error: GlimpseError) -> Event:
    """An event that says why there are no others."""
    data = encoded({"code": error.code, "detail": error.detail})
    return Event(None, Kind.ERROR, data, error.status)


def encoded(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def event_id(text: str | None) -> int | None:
    """The id that a client says it has seen last; None where that is none of ours."""
    return int(text) if text is not None and _ID.fullmatch(text) else None
