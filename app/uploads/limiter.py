"""How many uploads one process takes in at once, how many bytes of them it holds, and how long.

What is refused here is refused before memory grows. An upload holds its slot until its image is
stored, and the bytes that it has sent, not those that it has announced: a slow sender keeps nobody
else out. Whoever sends slower than the least rate is sent away. A batch lets go of each image once
that is stored; its rate is that of everything it has sent.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from core.errors import GlimpseError, Unavailable, UploadTooSlow, overloaded
from core.settings import Settings

LOOK_SECONDS = 0.25  # between two looks at who is too slow


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """At most `uploads` at once that hold `bytes_` together.

    An upload may take `grace` seconds, and one more second for each `rate` bytes received.
    """

    bytes_: int
    rate: int
    uploads: int = 256
    grace: float = 10.0


def upload_limits(settings: Settings) -> UploadLimits:
    return UploadLimits(
        bytes_=settings.max_upload_bytes_in_flight,
        rate=settings.min_upload_bytes_per_second,
    )


class UploadSlots:
    """The slots of one process. Used on its event loop alone.

    One timer looks after all of them: a timer for each upload would cost more than reading a small
    one does.
    """

    def __init__(self, limits: UploadLimits, now: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.now = now
        self.bytes_held = 0
        self._taken: set[UploadSlot] = set()
        self._stopping = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        """How many uploads hold a slot."""
        return len(self._taken)

    def take(self) -> "UploadSlot":
        """A slot, to be used as a context. Raises Overloaded where none is free."""
        if len(self._taken) >= self.limits.uploads:
            raise overloaded()
        slot = UploadSlot(self, self.now())
        self._taken.add(slot)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
        return slot

    def stop(self, seconds: float) -> None:
        """Send away, after `seconds`, who is still sending then."""
        asyncio.get_running_loop().call_later(seconds, self._stop)

    def _stop(self) -> None:
        self._stopping = True
        self._send_away()

    def _look(self) -> None:
        self._timer = None
        self._send_away()
        if self._taken:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _send_away(self) -> None:
        """Everybody who sends and whose time is up."""
        now = self.now()
        for slot in self._taken:
            if self._stopping:
                slot.send_away(Unavailable("The service is stopping; send the image again."))
            elif slot.pauses:
                continue  # we keep it waiting, not it us
            elif now >= slot.began + self.limits.grace + slot.received / self.limits.rate:
                slot.send_away(
                    UploadTooSlow(
                        f"The upload came slower than {self.limits.rate} bytes a second.",
                        extra={"min_bytes_per_second": self.limits.rate},
                    )
                )


class UploadSlot:
    """One upload's slot: what came and what it holds of that, since when, and
    who reads it.
    """

    __slots__ = (
        *("_reader", "_reason", "_released", "_slots"),
        *("began", "held", "pauses", "received"),
    )

    def __init__(self, slots: UploadSlots, began: float) -> None:
        self.began = began
        self.received = self.held = 0
        self.pauses = False
        self._slots = slots
        self._released = False
        self._reader: asyncio.Task[object] | None = None
        self._reason: GlimpseError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def expect(self, announced: int) -> None:
        """Raise Overloaded where so many bytes would not find room now."""
        if self._slots.bytes_held + announced > self._slots.limits.bytes_:
            raise overloaded()

    def hold(self, received: int) -> None:
        """Count bytes that have come. Raises Overloaded."""
        slots = self._slots
        if slots.bytes_held + received > slots.limits.bytes_:
            raise overloaded()
        slots.bytes_held += received
        self.held += received
        self.received += received

    def keep(self, unpacked: int) -> None:
        """Count bytes that we hold and that nobody has sent like that. Raises Overloaded."""
        self.hold(unpacked)
        self.received -= unpacked

    def let_go(self, count: int) -> None:
        """Give back some of what is held; the slot stays."""
        if not self._released:
            self._slots.bytes_held -= count
            self.held -= count

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While we do not read, the sender cannot send: that time is not the sender's.

        A pause within another ends with that one.
        """
        if self.pauses:
            yield
            return
        since, self.pauses = self._slots.now(), True
        try:
            yield
        finally:
            self.pauses = False
            self.began += self._slots.now() - since

    def release(self) -> None:
        """Give slot and bytes back, once."""
        if not self._released:
            self._released = True
            self._slots.bytes_held -= self.held
            self._slots._taken.discard(self)

    async def reading(self, body: Awaitable[None]) -> None:
        """Wait for the body to be read. Raises what `send_away` was told, at the next pause."""
        self._reader = asyncio.current_task()
        try:
            await body
        except asyncio.CancelledError:
            if self._reason is None or self._reader is None or self._reader.uncancel() > 0:
                raise  # somebody else's doing
            raise self._reason from None
        finally:
            self._reader = None

    def send_away(self, reason: GlimpseError) -> None:
        """End the reading, if it goes on."""
        if self._reader is not None and self._reason is None:
            self._reason = reason
            self._reader.cancel()
