"""Many watch, one looks: what is shared, what is seen, and what is left afterwards."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack

import pytest

from app.streams.poller import GATHER, TICK, Changes, Signal, Watcher
from core.errors import Unavailable

PATIENCE = 10.0
QUICK = 0.05  # seconds between looks


class Store:
    """Numbers by name, and every look-up that was made."""

    def __init__(self, **values: int) -> None:
        self.values: dict[str, int] = dict(values)
        self.looks: list[list[str]] = []
        self.answering = asyncio.Event()
        self.answering.set()
        self.asked = asyncio.Event()
        self.error: Exception | None = None

    async def look_up(self, keys: Sequence[str]) -> Mapping[str, int]:
        self.looks.append(list(keys))
        self.asked.set()
        seen = {key: self.values[key] for key in keys if key in self.values}
        await self.answering.wait()
        if self.error is not None:
            raise self.error
        return seen

    async def looked(self, times: int) -> None:
        """Return when there were so many looks more, each of them over."""
        wanted = len(self.looks) + times
        while len(self.looks) < wanted:  # noqa: ASYNC110 - it is counted, and no event is set
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)


class State:
    """What is described: equal to nothing but itself."""

    def __init__(self, value: int) -> None:
        self.value = value


@pytest.fixture
def store() -> Store:
    return Store(a=1, b=2)


@pytest.fixture
async def watcher(store: Store) -> AsyncIterator[Watcher[str, int, State]]:
    watcher = Watcher(store.look_up, State, tick=QUICK)
    yield watcher
    assert (len(watcher), watcher.running) == (0, False)
    await asyncio.sleep(0)
    assert not [t for t in asyncio.all_tasks() if "Watcher" in repr(t.get_coro())]


async def value_of(changes: Changes[State], seconds: float = PATIENCE) -> int | Signal:
    state = await changes.newest(seconds)
    return state.value if isinstance(state, State) else state


async def test_who_watches_gets_what_there_is_then_each_change_once(
    store: Store, watcher: Watcher[str, int, State]
) -> None:
    with watcher.watching("a") as changes:
        assert await value_of(changes) == 1
        assert await value_of(changes, 3 * QUICK) is Signal.QUIET
        store.values["a"] = 5
        assert await value_of(changes) == 5
        del store.values["a"]
        assert await value_of(changes) is Signal.ABSENT
        assert await value_of(changes, 3 * QUICK) is Signal.QUIET
        store.values["a"] = 5
        assert await value_of(changes) == 5
    with watcher.watching("unknown") as changes:
        assert await value_of(changes) is Signal.ABSENT


async def test_a_thousand_share_one_look_a_tick(store: Store) -> None:
    counted: list[int] = []
    watcher = Watcher(store.look_up, State, looked=counted.append, tick=QUICK)
    store.values = {str(n): n for n in range(100)}
    described = Counter[int]()

    async def watch(key: str) -> None:
        with watcher.watching(key) as changes:
            assert await value_of(changes) == int(key)
            state = await changes.newest(PATIENCE)
            assert isinstance(state, State)
            described[id(state)] += 1

    tasks = [asyncio.create_task(watch(str(n % 100))) for n in range(1000)]
    await store.looked(1)
    assert sorted(store.looks[0]) == sorted(store.values)  # each key once, all of them together
    await store.looked(3)
    assert [len(look) for look in store.looks] == [100] * len(store.looks) == counted
    store.values = {key: value + 1000 for key, value in store.values.items()}
    await asyncio.gather(*tasks)
    assert sorted(described.values()) == [10] * 100  # described once for ten who watch
    assert (len(watcher), watcher.running) == (0, False)


async def test_who_comes_later_is_looked_for_alone_and_at_once(store: Store) -> None:
    watcher = Watcher(store.look_up, State, tick=3600)
    with watcher.watching("a") as first:
        assert await value_of(first) == 1
        store.values["a"] = 7
        with watcher.watching("b") as second:
            assert await value_of(second) == 2
            assert await value_of(first, QUICK) is Signal.QUIET
            # What another knows already may be old: one who comes sees what is there now.
            with watcher.watching("a") as third:
                assert await value_of(third) == 7
            assert await value_of(first) == 7
    assert store.looks == [["a"], ["b"], ["a"]]


async def test_those_who_come_one_after_another_share_looks_too(store: Store) -> None:
    watcher = Watcher(store.look_up, State, tick=3600)
    now = asyncio.get_running_loop().time
    began = now()
    with ExitStack() as stack:
        for number in range(60):
            stack.enter_context(watcher.watching(str(number)))
            await asyncio.sleep(0.001)
        assert len(store.looks) <= (now() - began) / GATHER + 2


async def test_no_state_is_older_than_the_watch_that_gets_it(store: Store) -> None:
    watcher = Watcher(store.look_up, State, tick=3600)
    store.answering.clear()
    with watcher.watching("a") as first:
        async with asyncio.timeout(PATIENCE):
            await store.asked.wait()
        store.values["a"] = 9  # after the store was read, before its answer
        with watcher.watching("a") as second:
            store.answering.set()
            assert await value_of(first) == 1
            assert await value_of(second) == 9


async def test_a_slow_one_gets_the_newest_and_nothing_piles_up(
    store: Store, watcher: Watcher[str, int, State]
) -> None:
    with watcher.watching("a") as changes:
        assert await value_of(changes) == 1
        for value in range(100, 110):
            store.values["a"] = value
            await store.looked(2)
        assert await value_of(changes) == 109
        assert await value_of(changes, 3 * QUICK) is Signal.QUIET


@pytest.mark.parametrize("error", [Unavailable("The store is down."), ZeroDivisionError()])
async def test_a_look_that_fails_is_made_again(
    store: Store, watcher: Watcher[str, int, State], error: Exception
) -> None:
    with watcher.watching("a") as changes:
        assert await value_of(changes) == 1
        store.error = error
        store.values["a"] = 2
        with watcher.watching("b") as late:
            await store.looked(3)
            assert await value_of(changes, 0.001) is Signal.QUIET
            assert await value_of(late, 0.001) is Signal.QUIET
            store.error = None
            assert await value_of(changes) == 2
            assert await value_of(late) == 2


async def test_failing_is_logged_once_and_so_is_its_end(
    store: Store, watcher: Watcher[str, int, State], capsys: pytest.CaptureFixture[str]
) -> None:
    with watcher.watching("a") as changes:
        store.error = Unavailable("The store is down.")
        await store.looked(4)
        store.error = None
        await value_of(changes)
    printed = capsys.readouterr().out
    assert printed.count("cannot look for changes") == 1
    assert printed.count("changes are seen again") == 1


async def test_stopping_ends_every_watch_and_those_to_come(
    watcher: Watcher[str, int, State],
) -> None:
    with watcher.watching("a") as changes:
        assert await value_of(changes) == 1
        waiting = asyncio.create_task(value_of(changes))
        await asyncio.sleep(0)
        watcher.stop()
        assert await waiting is Signal.ENDED
        assert await value_of(changes) is Signal.ENDED
    with watcher.watching("b") as changes:
        assert await value_of(changes) is Signal.ENDED


async def test_those_who_come_and_go_in_any_order_leave_nothing(
    store: Store, watcher: Watcher[str, int, State]
) -> None:
    draw = random.Random(6)

    async def watch() -> None:
        key = draw.choice("ab")
        await asyncio.sleep(draw.uniform(0, 0.2))
        with watcher.watching(key) as changes:
            if draw.random() < 0.7:
                assert await value_of(changes) == store.values[key]
            await asyncio.sleep(draw.uniform(0, 0.1))

    tasks = [asyncio.create_task(watch()) for _ in range(200)]
    for task in draw.sample(tasks, 60):
        await asyncio.sleep(0.001)
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(o) for o in outcomes} <= {type(None), asyncio.CancelledError}, outcomes


def test_a_tick_makes_at_most_two_looks_a_second() -> None:
    assert TICK == 0.5
