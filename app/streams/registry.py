"""The open streams of one process: their number, their longest duration and their shutdown."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from app.metrics import StreamMetrics
from app.streams.events import Event
from app.streams.poller import Poller
from core.errors import RateLimited, Unavailable, overloaded

KEY_SHARE = 4  # a key has at most a quarter of the streams
STREAM_SECONDS = 3300.0  # the longest stream: Cloud Run ends a request after an hour

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Stream(Protocol):
    """A response or connection that sends events to one client until it ends."""

    def finish(self) -> None:
        """End soon, without the last event: the client reconnects."""
        ...


@dataclass(frozen=True, slots=True)
class StreamSource(Generic[K, V]):
    """What a stream is about. `absent` is the detail of the NotFound if the key does not exist."""

    streams: "StreamRegistry"
    poller: Poller[K, V, Event]
    key: K
    absent: str


class StreamRegistry:
    """Limits streams. Each one ends in time, so that load moves to new instances."""

    def __init__(self, max_streams: int, seconds: float, metrics: StreamMetrics) -> None:
        """Allow `max_streams` streams at once, each for `seconds`."""
        self._max_streams = max_streams
        self._seconds = seconds
        self._metrics = metrics
        self._reserved = 0
        self._by_key: Counter[str] = Counter()
        self._open: set[Stream] = set()
        self._stopping = False
        self._stop_pollers: list[Callable[[], None]] = []

    def poller(
        self,
        topic: str,
        look_up: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        describe: Callable[[V], Event],
    ) -> Poller[K, V, Event]:
        """Create the poller of the streams about `topic`. It stops with the streams."""
        poller = Poller(look_up, describe, on_lookup=self._metrics.lookup_counter(topic))
        self._stop_pollers.append(poller.stop)
        return poller

    def __len__(self) -> int:
        return self._reserved

    @contextmanager
    def reserve(self, transport: str, key_id: str = "") -> Iterator[None]:
        """Reserve a place for one stream of a key, if any.

        Raises Overloaded, RateLimited if the key has a quarter of all places, and Unavailable
        during shutdown.
        """
        if self._stopping:
            raise Unavailable("The service is shutting down. Retry the request.")
        if self._reserved >= self._max_streams:
            raise overloaded()
        most = max(1, self._max_streams // KEY_SHARE)
        if key_id and self._by_key[key_id] >= most:
            raise RateLimited(
                f"The key has {most} open streams, the most that a key may have. Close one first.",
                retry_after=1,
            )
        self._reserved += 1
        self._by_key[key_id] += 1
        self._metrics.opened(transport)
        try:
            yield
        finally:
            self._reserved -= 1
            self._by_key[key_id] -= 1
            if not self._by_key[key_id]:
                del self._by_key[key_id]
            self._metrics.closed(transport)

    @contextmanager
    def track(self, stream: Stream) -> Iterator[None]:
        """Finish `stream` after the longest duration, and at shutdown."""
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
        """Finish every stream, and accept no new ones."""
        self._stopping = True
        for stop in self._stop_pollers:
            stop()
        for stream in self._open:
            stream.finish()
