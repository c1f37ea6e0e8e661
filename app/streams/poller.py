"""Watching many things at the price of one look-up a tick, whoever watches how many of them."""

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

TICK = 0.5  # seconds between two looks at everything that is watched
GATHER = 0.02  # least seconds between two looks for those who have only just come


class Signal(Enum):
    """What there is to say instead of a state."""

    ABSENT = "there is no such thing"
    QUIET = "nothing has changed"
    ENDED = "nobody watches any longer"


class Changes(Generic[S]):
    """What one who watches sees: always the newest state, and none of them twice.

    Nothing piles up for one who is slow: what was not taken in time is replaced by what follows.
    """

    __slots__ = ("_ended", "_newest", "_news", "_taken", "since")

    def __init__(self, since: int) -> None:
        self.since = since  # the look that was the last one to begin before this watch did
        self._newest: S | Signal = Signal.QUIET
        self._taken: S | Signal = Signal.QUIET
        self._news = asyncio.Event()
        self._ended = False

    async def newest(self, seconds: float) -> S | Signal:
        """The newest state, as soon as there is one that was not taken yet.

        `Signal.ABSENT` where the thing is unknown, or was deleted; `QUIET` when `seconds` pass
        without any news; `ENDED` from the end on.
        """
        if not self._news.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._news.wait()
            except TimeoutError:
                return Signal.QUIET
        if self._ended:
            return Signal.ENDED
        self._news.clear()
        self._taken = self._newest
        return self._newest

    def put(self, state: S | Signal) -> None:
        self._newest = state
        if self._ended:
            return
        if state is self._taken:
            self._news.clear()  # it changed and changed back before anybody asked
        else:
            self._news.set()

    def end(self) -> None:
        """Let whoever waits go."""
        self._ended = True
        self._news.set()


class _Watched(Generic[V, S]):
    __slots__ = ("changes", "state", "value")

    def __init__(self) -> None:
        self.changes: set[Changes[S]] = set()
        self.value: V | None = None
        self.state: S | Signal = Signal.QUIET


class Watcher(Generic[K, V, S]):
    """One task that looks for everybody, and that is there only while somebody watches.

    `look_up` finds those of many keys that exist. `describe` makes of a value what those who watch
    are to get: once for each change, however many watch. Other processes need not be asked for
    anything: all of them read the same store.

    A state is never older than the watch it is given to. Where looking fails, those who watch wait
    until it succeeds again.
    """

    def __init__(
        self,
        look_up: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        describe: Callable[[V], S],
        *,
        looked: Callable[[int], None] = lambda keys: None,
        tick: float = TICK,
    ) -> None:
        """`looked` hears of each look-up, and how many keys it was for."""
        self._look_up = look_up
        self._describe = describe
        self._looked = looked
        self._tick = tick
        self._watched: dict[K, _Watched[V, S]] = {}
        self._fresh: set[K] = set()  # those that somebody has watched only since the last look
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._looks = 0
        self._failing = False
        self._stopped = False

    def __len__(self) -> int:
        """How many keys are watched."""
        return len(self._watched)

    @property
    def running(self) -> bool:
        return self._task is not None

    @contextmanager
    def watching(self, key: K) -> Iterator[Changes[S]]:
        """See `key` change, from its state as it is now on."""
        changes: Changes[S] = Changes(self._looks)
        if self._stopped:
            changes.end()
            yield changes
            return
        watched = self._watched.get(key)
        if watched is None:
            watched = self._watched[key] = _Watched()
        watched.changes.add(changes)
        self._fresh.add(key)
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            yield changes
        finally:
            self._leave(key, changes)

    def stop(self) -> None:
        """End every watch, and those that are yet to come."""
        self._stopped = True
        for watched in self._watched.values():
            for changes in watched.changes:
                changes.end()

    def _leave(self, key: K, changes: Changes[S]) -> None:
        watched = self._watched[key]
        watched.changes.remove(changes)
        if not watched.changes:
            del self._watched[key]
            self._fresh.discard(key)
        if not self._watched and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        now = asyncio.get_running_loop().time
        looked = now() - GATHER
        due = now() + self._tick
        while True:
            if not self._fresh:
                await self._woken_within(due - now())
            # Those who come together share a look, and it is for them alone.
            if self._fresh and (pause := min(looked + GATHER, due) - now()) > 0:
                await asyncio.sleep(pause)
            if now() >= due:
                await self._look(list(self._watched))
                due = now() + self._tick
            elif self._fresh:
                await self._look(list(self._fresh))
            looked = now()

    async def _woken_within(self, seconds: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _look(self, keys: Sequence[K]) -> None:
        self._fresh.clear()  # should this fail, the next tick looks for them as for all others
        self._looks += 1
        number = self._looks
        self._looked(len(keys))
        try:
            found = await self._look_up(keys)
        except GlimpseError as error:
            if not self._failing:
                log.warning("cannot look for changes", detail=error.detail, watched=len(self))
            self._failing = True
            return
        except Exception:
            # Whatever it is, everybody's streams hang on this task.
            if not self._failing:
                log.exception("cannot look for changes")
            self._failing = True
            return
        if self._failing:
            self._failing = False
            log.info("changes are seen again", watched=len(self))
        for key in keys:
            watched = self._watched.get(key)
            if watched is not None:  # else everybody left meanwhile
                self._tell(watched, found.get(key), number)

    def _tell(self, watched: _Watched[V, S], value: V | None, number: int) -> None:
        if value is None:
            watched.state = Signal.ABSENT
        elif value != watched.value:
            watched.state = self._describe(value)
        watched.value = value
        for changes in watched.changes:
            if changes.since < number:  # who came while this look was under way waits for the next
                changes.put(watched.state)
