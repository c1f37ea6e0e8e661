"""Polls many keys with one batched lookup per interval, shared by all subscribers."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Generic, TypeVar

import structlog

from core.errors import GlimpseError

log = structlog.get_logger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
S = TypeVar("S")

POLL_SECONDS = 0.5  # interval between lookups of all keys
BATCH_SECONDS = 0.02  # least interval between lookups of keys with new subscribers


class Signal(Enum):
    """What a subscriber gets in place of a state."""

    ABSENT = "the key does not exist"
    UNCHANGED = "the state has not changed"
    CLOSED = "the subscription is closed"


class Subscription(Generic[S]):
    """Gives one subscriber the newest state of a key, each state once.

    States do not queue up for a slow subscriber: a newer state replaces one that was not taken.
    """

    __slots__ = ("_available", "_closed", "_newest", "_taken", "since")

    def __init__(self, since: int) -> None:
        self.since = since  # number of the last lookup that began before this subscription
        self._newest: S | Signal = Signal.UNCHANGED
        self._taken: S | Signal = Signal.UNCHANGED
        self._available = asyncio.Event()
        self._closed = False

    async def next(self, seconds: float) -> S | Signal:
        """Return the newest state as soon as there is one that was not taken yet.

        `Signal.ABSENT`: the key does not exist, or was deleted. `UNCHANGED`: `seconds` passed
        without a new state. `CLOSED`: the subscription was closed.
        """
        if not self._available.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._available.wait()
            except TimeoutError:
                return Signal.UNCHANGED
        if self._closed:
            return Signal.CLOSED
        self._available.clear()
        self._taken = self._newest
        return self._newest

    def publish(self, state: S | Signal) -> None:
        self._newest = state
        if self._closed:
            return
        if state is self._taken:
            self._available.clear()  # it changed back before the subscriber took it
        else:
            self._available.set()

    def close(self) -> None:
        """Wake the subscriber; it gets `Signal.CLOSED` from now on."""
        self._closed = True
        self._available.set()


class _PolledKey(Generic[V, S]):
    __slots__ = ("state", "subscriptions", "value")

    def __init__(self) -> None:
        self.subscriptions: set[Subscription[S]] = set()
        self.value: V | None = None
        self.state: S | Signal = Signal.UNCHANGED


class Poller(Generic[K, V, S]):
    """Polls for all subscribers in one task, which runs only while there are subscribers.

    `look_up` returns the values of those keys that exist. `describe` turns a value into the state
    that subscribers get; it is called once for each change, not for each subscriber. Processes do
    not notify each other: each polls the same store.

    A subscriber never gets a state from before its subscription. If a lookup fails, subscribers
    wait until one succeeds.
    """

    def __init__(
        self,
        look_up: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        describe: Callable[[V], S],
        *,
        on_lookup: Callable[[int], None] = lambda keys: None,
        interval: float = POLL_SECONDS,
    ) -> None:
        """`on_lookup` is called before each lookup, with the number of its keys."""
        self._look_up = look_up
        self._describe = describe
        self._on_lookup = on_lookup
        self._interval = interval
        self._polled: dict[K, _PolledKey[V, S]] = {}
        self._new: set[K] = set()  # keys with subscribers since the last lookup
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._lookups = 0
        self._failing = False
        self._stopped = False

    def __len__(self) -> int:
        """The number of keys that are polled."""
        return len(self._polled)

    @property
    def running(self) -> bool:
        return self._task is not None

    @contextmanager
    def subscribe(self, key: K) -> Iterator[Subscription[S]]:
        """Subscribe to `key`. The first state is the current one."""
        subscription: Subscription[S] = Subscription(self._lookups)
        if self._stopped:
            subscription.close()
            yield subscription
            return
        polled = self._polled.get(key)
        if polled is None:
            polled = self._polled[key] = _PolledKey()
        polled.subscriptions.add(subscription)
        self._new.add(key)
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            yield subscription
        finally:
            self._unsubscribe(key, subscription)

    def stop(self) -> None:
        """Close every subscription, now and in future."""
        self._stopped = True
        for polled in self._polled.values():
            for subscription in polled.subscriptions:
                subscription.close()

    def _unsubscribe(self, key: K, subscription: Subscription[S]) -> None:
        polled = self._polled[key]
        polled.subscriptions.remove(subscription)
        if not polled.subscriptions:
            del self._polled[key]
            self._new.discard(key)
        if not self._polled and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        now = asyncio.get_running_loop().time
        polled_at = now() - BATCH_SECONDS
        due = now() + self._interval
        while True:
            if not self._new:
                await self._woken_within(due - now())
            # Subscribers that arrive together share a lookup of their keys only.
            if self._new and (pause := min(polled_at + BATCH_SECONDS, due) - now()) > 0:
                await asyncio.sleep(pause)
            if now() >= due:
                await self._poll(list(self._polled))
                due = now() + self._interval
            elif self._new:
                await self._poll(list(self._new))
            polled_at = now()

    async def _woken_within(self, seconds: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _poll(self, keys: Sequence[K]) -> None:
        self._new.clear()  # if this lookup fails, the next one of all keys includes them
        self._lookups += 1
        number = self._lookups
        self._on_lookup(len(keys))
        try:
            found = await self._look_up(keys)
        except GlimpseError as error:
            if not self._failing:
                log.warning("polling failed", detail=error.detail, keys=len(self))
            self._failing = True
            return
        except Exception:
            # The task must survive: every subscriber depends on it.
            if not self._failing:
                log.exception("polling failed")
            self._failing = True
            return
        if self._failing:
            self._failing = False
            log.info("polling recovered", keys=len(self))
        for key in keys:
            polled = self._polled.get(key)
            if polled is not None:  # it may have lost its subscribers meanwhile
                self._publish(polled, found.get(key), number)

    def _publish(self, polled: _PolledKey[V, S], value: V | None, number: int) -> None:
        if value is None:
            polled.state = Signal.ABSENT
        elif value != polled.value:
            polled.state = self._describe(value)
        polled.value = value
        for subscription in polled.subscriptions:
            if subscription.since < number:  # newer subscriptions wait for the next lookup
                subscription.publish(polled.state)
