"""Which states a client gets, and when. The clock moves only when a test moves it."""

import asyncio
import math

import pytest

from app.auth.requires import KeyRecheck
from app.streams.events import Event, EventSequence, Kind, deleted_event, event_id
from app.streams.poller import Signal, Subscription
from core.errors import Forbidden, NotFound, Unavailable
from tests.support.clock import turns

TIMEOUT = 10.0
NO_KEY = KeyRecheck(math.inf, None)


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
def subscription() -> Subscription[Event]:
    return Subscription(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def soon(events: EventSequence) -> Event | Signal:
    async with asyncio.timeout(TIMEOUT):
        return await events.next()


async def opened(
    subscription: Subscription[Event], clock: Clock, state: Event | Signal, after: int | None = None
) -> EventSequence:
    events = EventSequence(subscription, NO_KEY, after, clock)
    subscription.publish(state)
    assert await events.open("No such thing.")
    return events


async def test_update_is_delayed_and_replaced_by_a_newer_one(
    subscription: Subscription[Event], clock: Clock
) -> None:
    events = await opened(subscription, clock, first := update(1))
    assert await soon(events) is first
    subscription.publish(update(2))
    waiting = asyncio.create_task(soon(events))
    await turns()
    subscription.publish(third := update(3))
    await turns()
    assert not waiting.done()
    clock.seconds += 0.6
    assert await waiting is third


async def test_last_event_is_not_delayed(subscription: Subscription[Event], clock: Clock) -> None:
    events = await opened(subscription, clock, update(1))
    await soon(events)
    subscription.publish(update(2))
    waiting = asyncio.create_task(soon(events))
    await turns()
    subscription.publish(end := last(3))
    assert await waiting is end
    assert await soon(events) is Signal.CLOSED


@pytest.mark.parametrize("id_", [4, 5])
async def test_update_with_a_lower_id_is_skipped_and_the_last_event_is_not(
    subscription: Subscription[Event], clock: Clock, id_: int
) -> None:
    """The clock of another worker is behind: its later write has a lower id, or the same."""
    events = await opened(subscription, clock, update(5))
    await soon(events)
    clock.seconds += 1
    subscription.publish(update(id_))
    waiting = asyncio.create_task(soon(events))
    await turns()
    assert not waiting.done()
    subscription.publish(end := last(id_, Kind.FAILED))
    assert await waiting is end


@pytest.mark.parametrize(
    ("state", "after", "open_"),
    [
        (update(5), None, True),
        (update(5), 5, True),
        (last(5), None, True),
        (last(5), 4, True),
        (last(5), 6, True),
        (last(5), 5, False),
    ],
)
async def test_stream_opens_unless_the_client_has_the_last_event(
    subscription: Subscription[Event], clock: Clock, state: Event, after: int | None, open_: bool
) -> None:
    events = EventSequence(subscription, NO_KEY, after, clock)
    subscription.publish(state)
    assert await events.open("No such thing.") is open_
    if not open_:
        assert await soon(events) is Signal.CLOSED


async def test_absent_key_is_not_found_and_closed_subscription_is_unavailable(
    subscription: Subscription[Event], clock: Clock
) -> None:
    subscription.publish(Signal.ABSENT)
    with pytest.raises(NotFound, match="No such thing"):
        await EventSequence(subscription, NO_KEY, None, clock).open("No such thing.")
    subscription.close()
    with pytest.raises(Unavailable):
        await EventSequence(subscription, NO_KEY, None, clock).open("No such thing.")


async def test_stream_ends_when_its_subject_is_deleted(
    subscription: Subscription[Event], clock: Clock
) -> None:
    events = await opened(subscription, clock, update(1))
    await soon(events)
    subscription.publish(Signal.ABSENT)
    end = await soon(events)
    assert isinstance(end, Event)
    assert (end.id, end.kind, end.data, end.error_status) == (
        None,
        Kind.FAILED,
        deleted_event().data,
        404,
    )
    assert await soon(events) is Signal.CLOSED


async def test_key_is_rechecked_and_only_its_refusal_ends_the_stream(
    subscription: Subscription[Event], clock: Clock
) -> None:
    answers: list[Exception | None] = [None, Unavailable("The store is down."), Forbidden("No.")]
    checks = 0

    async def check() -> None:
        nonlocal checks
        checks += 1
        if (error := answers[checks - 1]) is not None:
            raise error

    events = EventSequence(subscription, KeyRecheck(30, check), None, clock)
    subscription.publish(update(1))
    assert await events.open("No such thing.")
    await soon(events)
    assert checks == 0
    for id_ in (2, 3):
        clock.seconds += 31
        subscription.publish(state := update(id_))
        assert await soon(events) is state
        assert checks == id_ - 1
    clock.seconds += 31
    subscription.publish(update(4))
    end = await soon(events)
    assert isinstance(end, Event)
    assert (end.kind, end.error_status, b"forbidden" in end.data) == (Kind.FAILED, 403, True)
    assert await soon(events) is Signal.CLOSED


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
def test_malformed_event_ids_are_ignored(text: str | None, id_: int | None) -> None:
    assert event_id(text) == id_
