"""Which states one client is told, and when, on a clock that stands still until it is moved."""

import asyncio
import math

import pytest

from app.auth.requires import Admission
from app.streams.events import Event, Kind, LiveEvents, event_id, gone
from app.streams.poller import Changes, Signal
from core.errors import Forbidden, NotFound, Unavailable

PATIENCE = 10.0
ANYBODY = Admission(math.inf, None)


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def update(id_: int) -> Event:
    return Event(id_, Kind.UPDATE, b"{}")


def last(id_: int, kind: Kind = Kind.COMPLETE) -> Event:
    return Event(id_, kind, b"{}")


@pytest.fixture
def changes() -> Changes[Event]:
    return Changes(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def soon(events: LiveEvents) -> Event | Signal:
    async with asyncio.timeout(PATIENCE):
        return await events.next()


async def opened(
    changes: Changes[Event], clock: Clock, state: Event | Signal, after: int | None = None
) -> LiveEvents:
    events = LiveEvents(changes, ANYBODY, after, clock)
    changes.put(state)
    assert await events.open("No such thing.")
    return events


async def test_an_update_waits_for_its_time_and_the_newest_is_told_then(
    changes: Changes[Event], clock: Clock
) -> None:
    events = await opened(changes, clock, first := update(1))
    assert await soon(events) is first
    changes.put(update(2))
    waiting = asyncio.create_task(soon(events))
    await asyncio.sleep(0.05)
    changes.put(third := update(3))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    clock.seconds += 0.6
    assert await waiting is third


async def test_the_last_event_waits_for_nothing(changes: Changes[Event], clock: Clock) -> None:
    events = await opened(changes, clock, update(1))
    await soon(events)
    changes.put(update(2))
    waiting = asyncio.create_task(soon(events))
    await asyncio.sleep(0.05)
    changes.put(end := last(3))
    assert await waiting is end
    assert await soon(events) is Signal.ENDED


@pytest.mark.parametrize("id_", [4, 5])
async def test_updates_never_go_back_and_the_last_event_is_told_all_the_same(
    changes: Changes[Event], clock: Clock, id_: int
) -> None:
    """Another worker's clock is behind: what it wrote later has a lower id, or the same."""
    events = await opened(changes, clock, update(5))
    await soon(events)
    clock.seconds += 1
    changes.put(update(id_))
    waiting = asyncio.create_task(soon(events))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    changes.put(end := last(id_, Kind.ERROR))
    assert await waiting is end


@pytest.mark.parametrize(
    ("state", "after", "left"),
    [
        (update(5), None, True),
        (update(5), 5, True),
        (last(5), None, True),
        (last(5), 4, True),
        (last(5), 6, True),
        (last(5), 5, False),
    ],
)
async def test_what_is_left_to_tell(
    changes: Changes[Event], clock: Clock, state: Event, after: int | None, left: bool
) -> None:
    events = LiveEvents(changes, ANYBODY, after, clock)
    changes.put(state)
    assert await events.open("No such thing.") is left
    if not left:
        assert await soon(events) is Signal.ENDED


async def test_what_is_not_there_or_cannot_be_read(changes: Changes[Event], clock: Clock) -> None:
    changes.put(Signal.ABSENT)
    with pytest.raises(NotFound, match="No such thing"):
        await LiveEvents(changes, ANYBODY, None, clock).open("No such thing.")
    changes.end()
    with pytest.raises(Unavailable):
        await LiveEvents(changes, ANYBODY, None, clock).open("No such thing.")


async def test_what_is_deleted_meanwhile_ends(changes: Changes[Event], clock: Clock) -> None:
    events = await opened(changes, clock, update(1))
    await soon(events)
    changes.put(Signal.ABSENT)
    end = await soon(events)
    assert isinstance(end, Event)
    assert (end.id, end.kind, end.data, end.refused) == (None, Kind.ERROR, gone().data, 404)
    assert await soon(events) is Signal.ENDED


async def test_a_key_is_asked_for_again_and_only_its_own_refusal_ends_a_stream(
    changes: Changes[Event], clock: Clock
) -> None:
    answers: list[Exception | None] = [None, Unavailable("The store is down."), Forbidden("No.")]
    asked = 0

    async def check() -> None:
        nonlocal asked
        asked += 1
        if (error := answers[asked - 1]) is not None:
            raise error

    events = LiveEvents(changes, Admission(30, check), None, clock)
    changes.put(update(1))
    assert await events.open("No such thing.")
    await soon(events)
    assert asked == 0
    for id_ in (2, 3):
        clock.seconds += 31
        changes.put(state := update(id_))
        assert await soon(events) is state
        assert asked == id_ - 1
    clock.seconds += 31
    changes.put(update(4))
    end = await soon(events)
    assert isinstance(end, Event)
    assert (end.kind, end.refused, b"forbidden" in end.data) == (Kind.ERROR, 403, True)
    assert await soon(events) is Signal.ENDED


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        (None, None),
        ("", None),
        ("7", 7),
        ("-7", None),
        ("7 ", None),
        ("\u0667", None),
        ("9" * 20, None),
    ],
)
def test_ids_are_ours_or_none(text: str | None, id_: int | None) -> None:
    assert event_id(text) == id_
