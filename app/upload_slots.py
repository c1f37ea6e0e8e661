"""How many uploads one process takes in at once, how many bytes of them it holds, and how long.

What is refused here is refused before memory grows. An upload holds its slot until its image is
stored, and the bytes that it has sent, not those that it has announced: a slow sender keeps nobody
else out. Whoever sends slower than the least rate is sent away.
"""

import asyncio
import random
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from core.errors import GlimpseError, Overloaded, Unavailable, UploadTooSlow

RETRY_AFTER = (1, 5)  # seconds, drawn between, so that those sent away do not return together


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """At most `uploads` at once that hold `bytes_` together.

    An upload may take `grace` seconds, and one more for each `rate` bytes that have come.
    """

    uploads: int
    bytes_: int
    grace: float
    rate: int


class UploadSlots:
    """The slots of one process. Used on its event loop alone."""

    def __init__(self, limits: UploadLimits) -> None:
        self.limits = limits
        self.bytes_held = 0
        self._taken: set[UploadSlot] = set()
        self._stop_at: float | None = None

    @property
    def in_flight(self) -> int:
        """How many uploads hold a slot."""
        return len(self._taken)

    def take(self) -> "UploadSlot":
        """A slot, to be used as a context. Raises Overloaded where none is free."""
        if len(self._taken) >= self.limits.uploads:
            raise overloaded()
        slot = UploadSlot(self)
        self._taken.add(slot)
        return slot

    def stop(self, seconds: float) -> None:
        """Send away, after `seconds`, who is still sending then."""
        self._stop_at = asyncio.get_running_loop().time() + seconds
        for slot in self._taken:
            slot.stop(self._stop_at)

    def _deadline(self, began: float, received: int) -> float:
        latest = began + self.limits.grace + received / self.limits.rate
        return latest if self._stop_at is None else min(latest, self._stop_at)

    def _too_late(self, now: float) -> GlimpseError:
        if self._stop_at is not None and now >= self._stop_at:
            return Unavailable("The service is stopping; send the image again.")
        return UploadTooSlow(
            f"The image came slower than {self.limits.rate} bytes a second.",
            extra={"min_bytes_per_second": self.limits.rate},
        )


class UploadSlot:
    """One upload's slot: what it holds, and until when it may send."""

    __slots__ = ("_began", "_held", "_released", "_slots", "_timeout")

    def __init__(self, slots: UploadSlots) -> None:
        self._slots = slots
        self._held = 0
        self._released = False
        self._began = 0.0
        self._timeout: asyncio.Timeout | None = None

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
        """Count bytes that have come, and give time for more. Raises Overloaded."""
        slots = self._slots
        if slots.bytes_held + received > slots.limits.bytes_:
            raise overloaded()
        slots.bytes_held += received
        self._held += received
        if self._timeout is not None:
            self._timeout.reschedule(slots._deadline(self._began, self._held))

    def release(self) -> None:
        """Give slot and bytes back, once."""
        if not self._released:
            self._released = True
            self._slots.bytes_held -= self._held
            self._slots._taken.discard(self)

    def reading(self) -> asyncio.Timeout:
        """The context in which the body is read; it ends with TimeoutError, see `too_late`."""
        self._began = asyncio.get_running_loop().time()
        self._timeout = asyncio.timeout_at(self._slots._deadline(self._began, 0))
        return self._timeout

    def read(self) -> None:
        """The body has come: its time counts no more."""
        self._timeout = None

    def stop(self, at: float) -> None:
        """Send the sender away at that time of the loop's, or earlier if it was late anyway."""
        if self._timeout is not None and not self._timeout.expired():
            when = self._timeout.when()
            self._timeout.reschedule(at if when is None else min(when, at))

    def too_late(self) -> GlimpseError:
        """What the sender is told when its time is up."""
        return self._slots._too_late(asyncio.get_running_loop().time())


def overloaded() -> Overloaded:
    return Overloaded(
        "The service has as much to do as it can hold; try again.",
        retry_after=random.randint(*RETRY_AFTER),
    )
