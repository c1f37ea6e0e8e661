"""Limits the uploads of one process: their number, the bytes they hold, and how slow they are.

An upload holds a slot until its image is stored. It reserves the bytes that have arrived, not those
that it announces, so a slow client does not block others. A batch releases the bytes of each image
once that image is stored.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from core.errors import GlimpseError, Unavailable, UploadTooSlow, overloaded
from core.http.content_length import announced_bytes
from core.settings import Settings

MIN_UPLOAD_BYTES_PER_SECOND = 16 * 1024  # 128 kbit/s, as slow as mobile networks get
CHECK_SECONDS = 0.25  # interval between checks for slow clients
CHUNK_BYTES = 64 * 1024  # processed before other tasks of the event loop run


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """At most `max_uploads` at once, which hold at most `max_bytes` together.

    The process waits for a client's bytes for `grace_seconds`, and for one more second for each
    `min_bytes_per_second` that have arrived.
    """

    max_bytes: int
    min_bytes_per_second: int
    max_uploads: int = 256
    grace_seconds: float = 10.0


def upload_limits(settings: Settings) -> UploadLimits:
    return UploadLimits(
        max_bytes=settings.max_upload_bytes_in_flight,
        min_bytes_per_second=MIN_UPLOAD_BYTES_PER_SECOND,
    )


class UploadLimiter:
    """The slots of one process. Only its event loop may use them.

    One timer checks all uploads: a timer for each would cost more than reading a small upload.
    """

    def __init__(
        self, limits: UploadLimits, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits
        self.monotonic = monotonic
        self.bytes_reserved = 0
        self._slots: set[UploadSlot] = set()
        self._stopping = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        """The number of uploads that hold a slot."""
        return len(self._slots)

    def slot(self) -> "UploadSlot":
        """A slot, to be used as a context manager. Raises Overloaded if all are in use."""
        if len(self._slots) >= self.limits.max_uploads:
            raise overloaded()
        slot = UploadSlot(self)
        self._slots.add(slot)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(CHECK_SECONDS, self._check_regularly)
        return slot

    def discard(self, slot: "UploadSlot") -> None:
        self._slots.discard(slot)

    def stop(self, seconds: float) -> None:
        """Refuse the uploads that are still arriving after `seconds`."""
        asyncio.get_running_loop().call_later(seconds, self._stop)

    def _stop(self) -> None:
        self._stopping = True
        self._check()

    def _check_regularly(self) -> None:
        self._timer = None
        self._check()
        if self._slots:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(CHECK_SECONDS, self._check_regularly)

    def _check(self) -> None:
        """Interrupt slow uploads, and when the process stops all that are still arriving."""
        rate, now = self.limits.min_bytes_per_second, self.monotonic()
        for slot in self._slots:
            if self._stopping:
                slot.interrupt(Unavailable("The service is shutting down. Send the image again."))
            elif slot.is_slow(now):
                slot.interrupt(
                    UploadTooSlow(
                        f"The upload is slower than {rate} bytes per second.",
                        extra={"min_bytes_per_second": rate},
                    )
                )


class UploadSlot:
    """The slot of one upload: it reads the request's body and accounts for its bytes.

    `image_sizes` lists the sizes of the images that the upload contained, for usage statistics.
    """

    __slots__ = (
        *("_interruption", "_open", "bytes_received", "bytes_reserved"),
        *("image_sizes", "interruptible_task", "limiter", "waited", "waiting_since"),
    )

    def __init__(self, limiter: UploadLimiter) -> None:
        self.bytes_received = 0
        self.bytes_reserved = 0
        self.image_sizes: list[int] = []
        self.interruptible_task: asyncio.Task[object] | None = None
        self.waited = 0.0  # seconds for the client
        self.waiting_since: float | None = None  # on the limiter's clock
        self.limiter = limiter
        self._open = True
        self._interruption: GlimpseError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raises the reason of an interruption in place of the CancelledError that it caused."""
        self.close()
        if self._interruption is None or not isinstance(error, asyncio.CancelledError):
            return
        task = asyncio.current_task()
        if task is not None and task.uncancel() == 0:  # or the server cancels the request as well
            raise self._interruption from None

    def read(
        self,
        request: Request,
        max_bytes: int,
        too_large: Callable[[], GlimpseError],
        *,
        buffered: int | None = None,
    ) -> "BodyReader":
        """The body of `request`, to be iterated over once. The slot reserves what arrives.

        `too_large` makes the error for a body of more than `max_bytes`. `buffered` is the largest
        number of bytes that the caller reserves at a time, by default `max_bytes`.

        Raises that error or Overloaded at once if the announced length is too large. Iterating
        raises them as well, and ClientDisconnect. The slot's context raises UploadTooSlow or
        Unavailable if the limiter interrupts the upload.
        """
        announced = announced_bytes(request)
        if announced is not None:
            if announced > max_bytes:
                raise too_large()
            self.check(announced if buffered is None else min(announced, buffered))
        self.interruptible_task = asyncio.current_task()
        return BodyReader(self, request.receive, max_bytes, too_large)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets `UploadLimiter.stop` interrupt the current task, as it does while `read` is used."""
        self.interruptible_task = asyncio.current_task()
        try:
            yield
        finally:
            self.interruptible_task = None

    def interrupt(self, reason: GlimpseError) -> None:
        """Cancel the task that reads, if any: the slot's context then raises `reason`."""
        if self.interruptible_task is not None and self._interruption is None:
            self._interruption = reason
            self.interruptible_task.cancel()

    def is_slow(self, now: float) -> bool:
        """Whether the process waits for the client now, and has waited longer than it may.

        Time in which the process works does not count: the client cannot send then.
        """
        if self.waiting_since is None:
            return False
        limits = self.limiter.limits
        allowed = limits.grace_seconds + self.bytes_received / limits.min_bytes_per_second
        return self.waited + now - self.waiting_since >= allowed

    def check(self, count: int) -> None:
        """Raise Overloaded if `count` more bytes cannot be reserved now."""
        limiter = self.limiter
        if limiter.bytes_reserved + count > limiter.limits.max_bytes:
            raise overloaded()

    def reserve(self, count: int) -> None:
        """Account for `count` bytes that are held in memory. Raises Overloaded."""
        self.check(count)
        self.limiter.bytes_reserved += count
        self.bytes_reserved += count

    def release(self, count: int) -> None:
        """Give back `count` reserved bytes. Does nothing after `close`."""
        if self._open:
            self.limiter.bytes_reserved -= count
            self.bytes_reserved -= count

    def close(self) -> None:
        """Give back the slot and its bytes. Further calls do nothing."""
        if self._open:
            self.release(self.bytes_reserved)
            self._open = False
            self.limiter.discard(self)


class BodyReader:
    """An async iterator over a request's body, in chunks of at most `CHUNK_BYTES`."""

    __slots__ = (
        "_max_bytes",
        "_message",
        "_monotonic",
        "_more",
        "_position",
        "_receive",
        "_slot",
        "_too_large",
    )

    def __init__(
        self,
        slot: UploadSlot,
        receive: Receive,
        max_bytes: int,
        too_large: Callable[[], GlimpseError],
    ) -> None:
        self._slot = slot
        self._receive = receive
        self._monotonic = slot.limiter.monotonic
        self._max_bytes = max_bytes
        self._too_large = too_large
        self._message = b""  # a message that is larger than one chunk
        self._position = 0  # where its next chunk begins
        self._more = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._position < len(self._message):
            await asyncio.sleep(0)
            return self._chunk()
        slot, monotonic = self._slot, self._monotonic
        while self._more:
            began = slot.waiting_since = monotonic()
            message = await self._receive()
            slot.waiting_since = None
            slot.waited += monotonic() - began
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body: bytes = message.get("body", b"")
            self._more = message.get("more_body", False)
            slot.bytes_received += len(body)
            if slot.bytes_received > self._max_bytes:
                raise self._too_large()
            if len(body) > CHUNK_BYTES:
                self._message, self._position = body, 0
                return self._chunk()
            if body:
                slot.reserve(len(body))
                return body
        slot.interruptible_task = None
        raise StopAsyncIteration

    def _chunk(self) -> bytes:
        chunk = self._message[self._position : self._position + CHUNK_BYTES]
        self._position += len(chunk)
        self._slot.reserve(len(chunk))
        return chunk
