"""The open streams of one process: how many there may be, for how long, and their common end."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from app.metrics import LiveMetrics
from app.streams.events import Event
from app.streams.poller import Watcher
from core.errors import Unavailable, overloaded

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Stream(Protocol):
    """Something that is sent to one client until it ends."""

    def finish(self) -> None:
        """Come to an end soon, without saying that this is the end of what was watched."""
        ...


@dataclass(frozen=True, slots=True)
class Watched(Generic[K, V]):
    """What a stream is about. `absent` says in a refusal that there is no such thing."""

    streams: "LiveStreams"
    watcher: Watcher[K, V, Event]
    key: K
    absent: str


class LiveStreams:
    """Every stream has an end, so that load moves to new instances and nothing is open for ever."""

    def __init__(self, most: int, seconds: float, metrics: LiveMetrics) -> None:
        """At most `most` streams at once, none of them for longer than `seconds`."""
        self._most = most
        self._seconds = seconds
        self._metrics = metrics
        self._places = 0
        self._open: set[Stream] = set()
        self._stopping = False
        self._watchers: list[Callable[[], None]] = []  # what stops each of them

    def watcher(
        self,
        what: str,
        look_up: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        describe: Callable[[V], Event],
    ) -> Watcher[K, V, Event]:
        """What the streams about `what` watch; it stops with them."""
        looked = self._metrics.looking_for(what)
        watcher = Watcher(look_up, describe, looked=looked)
        self._watchers.append(watcher.stop)
        return watcher

    def __len__(self) -> int:
        return self._places

    @contextmanager
    def place(self, transport: str) -> Iterator[None]:
        """Room for one stream. Raises Overloaded; Unavailable where we are stopping."""
        if self._stopping:
            raise Unavailable("The service is stopping; try again.")
        if self._places >= self._most:
            raise overloaded()
        self._places += 1
        self._metrics.opened(transport)
        try:
            yield
        finally:
            self._places -= 1
            self._metrics.closed(transport)

    @contextmanager
    def running(self, stream: Stream) -> Iterator[None]:
        """Finish `stream` in time, and when we stop."""
        timer = asyncio.get_running_loop().call_later(self._seconds, stream.finish)
        self._open.add(stream)
        if self._stopping:
            stream.finish()
        try:
            yield
        finally:
            timer.cancel()
            self._open.remove(stream)

    def stop(self) -> None:
        """Finish all of them; there will be no more."""
        self._stopping = True
        for stop in self._watchers:
            stop()
        for stream in self._open:
            stream.finish()
