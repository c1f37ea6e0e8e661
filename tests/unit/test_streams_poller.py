"""The poller: which lookups subscribers share, which states they get, and what it cleans up."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack

import pytest

from app.streams.poller import BATCH_SECONDS, POLL_SECONDS, Poller, Signal, Subscription
from core.errors import Unavailable
from tests.support.clock import turns

TIMEOUT = 10.0
INTERVAL = 0.05  # seconds between lookups


class Store:
    """Numbers by name, and a log of every lookup."""

    def __init__(self, **values: int) -> None:
        self.values: dict[str, int] = dict(values)
        self.lookups: list[list[str]] = []
        self.answering = asyncio.Event()
        self.answering.set()
        self.asked = asyncio.Event()
        self.error: Exception | None = None

    async def look_up(self, keys: Sequence[str]) -> Mapping[str, int]:
        self.lookups.append(list(keys))
        self.asked.set()
        seen = {key: self.values[key] for key in keys if key in self.values}
        await self.answering.wait()
        if self.error is not None:
            raise self.error
        return seen

    async def looked(self, times: int) -> None:
        """Return after `times` more lookups have finished."""
        wanted = len(self.lookups) + times
        while len(self.lookups) < wanted:
            self.asked.clear()
            await self.asked.wait()
        await asyncio.sleep(0)


class State:
    """A described value, equal only to itself."""

    def __init__(self, value: int) -> None:
        self.value = value


@pytest.fixture
def store() -> Store:
    return Store(a=1, b=2)


@pytest.fixture
async def poller(store: Store) -> AsyncIterator[Poller[str, int, State]]:
    poller = Poller(store.look_up, State, interval=INTERVAL)
    yield poller
    assert (len(poller), poller.running) == (0, False)
    await asyncio.sleep(0)
    assert not [t for t in asyncio.all_tasks() if "Poller" in repr(t.get_coro())]


async def value_of(subscription: Subscription[State], seconds: float = TIMEOUT) -> int | Signal:
    state = await subscription.next(seconds)
    return state.value if isinstance(state, State) else state


async def test_subscriber_gets_the_current_state_then_each_change_once(
    store: Store, poller: Poller[str, int, State]
) -> None:
    with poller.subscribe("a") as subscription:
        assert await value_of(subscription) == 1
        assert await value_of(subscription, 3 * INTERVAL) is Signal.UNCHANGED
        store.values["a"] = 5
        assert await value_of(subscription) == 5
        del store.values["a"]
        assert await value_of(subscription) is Signal.ABSENT
        assert await value_of(subscription, 3 * INTERVAL) is Signal.UNCHANGED
        store.values["a"] = 5
        assert await value_of(subscription) == 5
    with poller.subscribe("unknown") as subscription:
        assert await value_of(subscription) is Signal.ABSENT


async def test_a_thousand_subscribers_share_one_lookup_per_interval(store: Store) -> None:
    counted: list[int] = []
    poller = Poller(store.look_up, State, on_lookup=counted.append, interval=INTERVAL)
    store.values = {str(n): n for n in range(100)}
    described = Counter[int]()

    async def subscribe(key: str) -> None:
        with poller.subscribe(key) as subscription:
            assert await value_of(subscription) == int(key)
            state = await subscription.next(TIMEOUT)
            assert isinstance(state, State)
            described[id(state)] += 1

    tasks = [asyncio.create_task(subscribe(str(n % 100))) for n in range(1000)]
    await store.looked(1)
    assert sorted(store.lookups[0]) == sorted(store.values)  # each key once, in one lookup
    await store.looked(3)
    assert [len(keys) for keys in store.lookups] == [100] * len(store.lookups) == counted
    store.values = {key: value + 1000 for key, value in store.values.items()}
    await asyncio.gather(*tasks)
    assert sorted(described.values()) == [10] * 100  # described once for ten subscribers
    assert (len(poller), poller.running) == (0, False)


async def test_new_subscriber_triggers_an_immediate_lookup_of_its_key(store: Store) -> None:
    poller = Poller(store.look_up, State, interval=3600)
    with poller.subscribe("a") as first:
        assert await value_of(first) == 1
        store.values["a"] = 7
        with poller.subscribe("b") as second:
            assert await value_of(second) == 2
            assert await value_of(first, INTERVAL) is Signal.UNCHANGED
            # The state that the first subscriber got may be outdated: a new one gets a fresh one.
            with poller.subscribe("a") as third:
                assert await value_of(third) == 7
            assert await value_of(first) == 7
    assert store.lookups == [["a"], ["b"], ["a"]]


async def test_new_subscribers_in_quick_succession_share_lookups(store: Store) -> None:
    poller = Poller(store.look_up, State, interval=3600)
    now = asyncio.get_running_loop().time
    began = now()
    with ExitStack() as stack:
        for number in range(60):
            stack.enter_context(poller.subscribe(str(number)))
            await asyncio.sleep(0)
        assert len(store.lookups) <= (now() - began) / BATCH_SECONDS + 2


async def test_no_state_is_older_than_its_subscription(store: Store) -> None:
    poller = Poller(store.look_up, State, interval=3600)
    store.answering.clear()
    with poller.subscribe("a") as first:
        async with asyncio.timeout(TIMEOUT):
            await store.asked.wait()
        store.values["a"] = 9  # after the store was read, before it responds
        with poller.subscribe("a") as second:
            store.answering.set()
            assert await value_of(first) == 1
            assert await value_of(second) == 9


async def test_slow_subscriber_gets_only_the_newest_state(
    store: Store, poller: Poller[str, int, State]
) -> None:
    with poller.subscribe("a") as subscription:
        assert await value_of(subscription) == 1
        for value in range(100, 110):
            store.values["a"] = value
            await store.looked(2)
        assert await value_of(subscription) == 109
        assert await value_of(subscription, 3 * INTERVAL) is Signal.UNCHANGED


@pytest.mark.parametrize("error", [Unavailable("The store is down."), ZeroDivisionError()])
async def test_failed_lookup_is_repeated(
    store: Store, poller: Poller[str, int, State], error: Exception
) -> None:
    with poller.subscribe("a") as subscription:
        assert await value_of(subscription) == 1
        store.error = error
        store.values["a"] = 2
        with poller.subscribe("b") as late:
            await store.looked(3)
            assert await value_of(subscription, 0.001) is Signal.UNCHANGED
            assert await value_of(late, 0.001) is Signal.UNCHANGED
            store.error = None
            assert await value_of(subscription) == 2
            assert await value_of(late) == 2


async def test_failure_and_recovery_are_logged_once(
    store: Store, poller: Poller[str, int, State], capsys: pytest.CaptureFixture[str]
) -> None:
    with poller.subscribe("a") as subscription:
        store.error = Unavailable("The store is down.")
        await store.looked(4)
        store.error = None
        await value_of(subscription)
    printed = capsys.readouterr().out
    assert printed.count("polling failed") == 1
    assert printed.count("polling recovered") == 1


async def test_stop_closes_current_and_future_subscriptions(
    poller: Poller[str, int, State],
) -> None:
    with poller.subscribe("a") as subscription:
        assert await value_of(subscription) == 1
        waiting = asyncio.create_task(value_of(subscription))
        await asyncio.sleep(0)
        poller.stop()
        assert await waiting is Signal.CLOSED
        assert await value_of(subscription) is Signal.CLOSED
    with poller.subscribe("b") as subscription:
        assert await value_of(subscription) is Signal.CLOSED


async def test_subscribers_in_any_order_leave_nothing_behind(
    store: Store, poller: Poller[str, int, State]
) -> None:
    draw = random.Random(6)

    async def subscribe() -> None:
        key = draw.choice("ab")
        await turns(draw.randrange(500))
        with poller.subscribe(key) as subscription:
            if draw.random() < 0.7:
                assert await value_of(subscription) == store.values[key]
            await turns(draw.randrange(300))

    tasks = [asyncio.create_task(subscribe()) for _ in range(200)]
    for task in draw.sample(tasks, 60):
        await turns(draw.randrange(10))
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(o) for o in outcomes} <= {type(None), asyncio.CancelledError}, outcomes


def test_default_interval_is_half_a_second() -> None:
    assert POLL_SECONDS == 0.5
