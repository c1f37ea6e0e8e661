"""The events of one stream: which states a client gets, and when.

All transports share this module: `app.streams.sse` sends the events as server-sent events,
`app.streams.websocket` as WebSocket messages.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from app.auth.requires import KeyRecheck
from app.streams.poller import Signal, Subscription
from core.errors import GlimpseError, NotFound, Unavailable
from core.http.problems import problem_document

HEARTBEAT_SECONDS = 15.0  # proxies close connections that are silent for about a minute
UPDATE_SECONDS = 0.5  # least interval between two updates; the last event is sent at once
FIRST_STATE_SECONDS = 5.0  # longest wait for the first state
_ID = re.compile(r"[0-9]{1,19}")


class Kind(StrEnum):
    """The name of an event.

    None is `error`: `EventSource` dispatches an event of that name for its own network errors
    (https://html.spec.whatwg.org/multipage/server-sent-events.html, 9.2.3).
    """

    UPDATE = "update"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """One event of a stream. `id` rises within a stream, `data` is JSON.

    An event about an error of the stream itself is `failed` without an `id`; its `error_status` is
    the HTTP status of that error.
    """

    id: int | None
    kind: Kind
    data: bytes
    error_status: int | None = None

    @property
    def last(self) -> bool:
        """Whether the stream ends with this event."""
        return self.kind is not Kind.UPDATE


class EventSequence:
    """Selects the events for one client that has seen everything up to the event `after`.

    Ids rise: a state whose id is not above the last one is skipped, so that a client never sees a
    state go back, even if clocks of machines differ. The last event is always sent.
    """

    def __init__(
        self,
        subscription: Subscription[Event],
        recheck: KeyRecheck,
        after: int | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._subscription = subscription
        self._after = after
        self._now = now
        self._recheck = recheck
        self._recheck_at = now() + recheck.seconds
        self._next_update = now()
        self._first: Event | None = None

    async def open(self, absent: str) -> bool:
        """Wait for the first state. Returns False if the client already has the last event.

        Raises NotFound with the detail `absent`, and Unavailable if the store does not answer or
        the service shuts down.
        """
        state = await self._subscription.next(FIRST_STATE_SECONDS)
        if state is Signal.ABSENT:
            raise NotFound(absent)
        if isinstance(state, Signal):
            raise Unavailable("The service cannot read the current state. Retry the request.")
        # Equal ids only: a higher id may come from the clock of another machine.
        if state.last and state.id == self._after:
            self._subscription.close()
            return False
        self._first = state
        return True

    async def next(self) -> Event | Signal:
        """Return the next event, or `Signal.UNCHANGED` if a heartbeat is due.

        Returns `Signal.CLOSED` after the last event and after the subscription was closed.
        """
        while True:
            state = await self._next_state()
            if state is Signal.CLOSED:
                return state
            if self._now() >= self._recheck_at and (refused := await self._check_key()) is not None:
                self._subscription.close()
                return error_event(refused)
            if state is Signal.ABSENT:
                self._subscription.close()
                return deleted_event()
            if isinstance(state, Signal):
                return state
            if state.last:
                self._subscription.close()
                return state
            if self._after is None or (state.id is not None and state.id > self._after):
                self._after = state.id
                self._next_update = self._now() + UPDATE_SECONDS
                return state

    async def _check_key(self) -> GlimpseError | None:
        """Return why the key is no longer valid: a stream must not outlive its key."""
        assert self._recheck.check is not None
        try:
            await self._recheck.check()
        except Unavailable:
            pass  # the key was valid at the last check
        except GlimpseError as error:
            return error
        self._recheck_at = self._now() + self._recheck.seconds
        return None

    async def _next_state(self) -> Event | Signal:
        """Return the newest state; wait with an update until it is due."""
        state: Event | Signal | None = self._first
        self._first = None
        if state is None:
            state = await self._subscription.next(HEARTBEAT_SECONDS)
        while isinstance(state, Event) and not state.last:
            pause = self._next_update - self._now()
            if pause <= 0:
                break
            newer = await self._subscription.next(pause)
            if newer is not Signal.UNCHANGED:
                state = newer
        return state


def deleted_event() -> Event:
    """The last event of a stream about something that was deleted."""
    return error_event(NotFound("It was deleted."))


def error_event(error: GlimpseError) -> Event:
    """The last event of a stream that cannot continue. Its data is a problem document."""
    data = encoded(problem_document(error.status, error.code, error.title, error.detail))
    return Event(None, Kind.FAILED, data, error.status)


def encoded(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def event_id(text: str | None) -> int | None:
    """Parse the id of the last event that a client has seen, or None if it is malformed."""
    return int(text) if text is not None and _ID.fullmatch(text) else None
