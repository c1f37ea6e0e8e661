"""The limiter bounds uploads and their bytes, and refuses slow clients."""

import asyncio
from collections.abc import Sequence

import pytest
from starlette.requests import Request
from starlette.types import Message

from app.uploads import limiter
from app.uploads.limiter import CHUNK_BYTES, UploadLimiter, UploadLimits, UploadSlot
from core.errors import BodyTooLarge, GlimpseError, Overloaded, Unavailable, UploadTooSlow
from tests.support.clock import LoopClock, turns

LIMITS = UploadLimits(max_uploads=3, max_bytes=1000, grace_seconds=60, min_bytes_per_second=1)


async def test_number_of_uploads_is_limited() -> None:
    uploads = UploadLimiter(LIMITS)
    with uploads.slot(), uploads.slot():
        with uploads.slot():
            assert uploads.in_flight == 3
            with pytest.raises(Overloaded) as refused:
                uploads.slot()
            assert refused.value.retry_after in range(1, 6)
        with uploads.slot():
            pass
    assert uploads.in_flight == 0


async def test_number_of_bytes_is_limited() -> None:
    uploads = UploadLimiter(LIMITS)
    with uploads.slot() as first, uploads.slot() as second:
        first.reserve(600)
        second.check(400)
        with pytest.raises(Overloaded):
            second.check(401)
        second.reserve(400)
        with pytest.raises(Overloaded):
            first.reserve(1)
        assert uploads.bytes_reserved == 1000
        second.close()
        second.close()  # has no further effect
        assert (uploads.bytes_reserved, uploads.in_flight) == (600, 1)
        first.reserve(400)
    assert (uploads.bytes_reserved, uploads.in_flight) == (0, 0)


async def test_released_bytes_can_be_reserved_again() -> None:
    uploads = UploadLimiter(LIMITS)
    with uploads.slot() as slot:
        slot.reserve(1000)
        slot.release(700)
        assert (uploads.bytes_reserved, slot.bytes_reserved) == (300, 300)
        slot.reserve(700)
        with pytest.raises(Overloaded):
            slot.reserve(1)
        slot.close()
        slot.release(500)  # has no effect: all bytes are released
        assert uploads.bytes_reserved == 0


# --- Reading. -------------------------------------------------------------------------------------


class Clock:
    """Moves when told."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Client:
    """Sends chunks, each after `seconds` of `clock`. Without chunks, sends nothing."""

    def __init__(self, clock: Clock, seconds: float, chunks: Sequence[bytes] = ()) -> None:
        self.clock, self.seconds, self.chunks = clock, seconds, chunks
        self.sent = 0

    async def __call__(self) -> Message:
        self.clock.seconds += self.seconds
        await turns(10)  # ten checks of the limiter
        if not self.chunks:
            await asyncio.Event().wait()
        self.sent += 1
        more = self.sent < len(self.chunks)
        return {"type": "http.request", "body": self.chunks[self.sent - 1], "more_body": more}


def too_large() -> GlimpseError:
    return BodyTooLarge("The body is too large.")


async def read(slot: UploadSlot, client: Client) -> list[bytes]:
    request = Request({"type": "http", "method": "POST", "headers": []}, client)
    return [chunk async for chunk in slot.read(request, 10**6, too_large)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(limiter, "CHECK_SECONDS", 0.0)
    return Clock()


def strict(clock: Clock) -> UploadLimiter:
    """Waits for 60 seconds, and for one more for each 100 bytes."""
    return UploadLimiter(
        UploadLimits(max_bytes=10**6, grace_seconds=60, min_bytes_per_second=100),
        clock,
    )


async def test_large_messages_are_read_in_chunks() -> None:
    body = bytes(range(256)) * 1000
    uploads = UploadLimiter(UploadLimits(max_bytes=10**6, min_bytes_per_second=1))
    with uploads.slot() as slot:
        chunks = await read(slot, Client(Clock(), 0, [body]))
        assert b"".join(chunks) == body
        assert [len(chunk) for chunk in chunks[:-1]] == [CHUNK_BYTES] * 3
        assert slot.bytes_reserved == slot.bytes_received == len(body)


async def test_other_tasks_run_between_chunks() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    request = Request({"type": "http", "headers": []}, Client(Clock(), 0, [bytes(4 * CHUNK_BYTES)]))
    with UploadLimiter(UploadLimits(max_bytes=10**6, min_bytes_per_second=1)).slot() as slot:
        at = [turns async for _ in slot.read(request, 10**6, too_large)]
    task.cancel()
    assert len(set(at)) == 4


async def test_body_that_is_too_large_is_refused() -> None:
    client = Client(Clock(), 0, [bytes(60)] * 10)
    with UploadLimiter(LIMITS).slot() as slot:
        request = Request({"type": "http", "headers": []}, client)
        with pytest.raises(BodyTooLarge):
            assert [chunk async for chunk in slot.read(request, 100, too_large)]
    assert client.sent == 2


async def test_announced_length_is_refused_unread() -> None:
    def announcing(length: int) -> Request:
        headers = [(b"content-length", str(length).encode())]
        return Request({"type": "http", "headers": headers}, Client(Clock(), 0))

    with UploadLimiter(LIMITS).slot() as slot:
        slot.reserve(400)
        slot.read(announcing(600), 5000, too_large)
        with pytest.raises(Overloaded):
            slot.read(announcing(601), 5000, too_large)
        with pytest.raises(BodyTooLarge):
            slot.read(announcing(5001), 5000, too_large)
        # A caller that releases bytes while it reads needs less room.
        slot.read(announcing(5000), 5000, too_large, buffered=600)
        with pytest.raises(Overloaded):
            slot.read(announcing(5000), 5000, too_large, buffered=601)


@pytest.mark.parametrize(
    ("seconds", "chunks"), [(5, [b"x"] * 1000), (70, ())], ids=["slow", "silent"]
)
async def test_slow_client_is_refused(
    clock: Clock, seconds: float, chunks: Sequence[bytes]
) -> None:
    uploads = strict(clock)
    with pytest.raises(UploadTooSlow) as refused, uploads.slot() as slot:
        await read(slot, Client(clock, seconds, chunks))
    assert refused.value.extra == {"min_bytes_per_second": 100}
    assert 60 <= clock.seconds <= 75
    assert (uploads.in_flight, uploads.bytes_reserved) == (0, 0)


async def test_fast_client_may_take_longer_than_the_grace_period(clock: Clock) -> None:
    with strict(clock).slot() as slot:
        await read(slot, Client(clock, 50, [bytes(10_000)] * 5))
    assert clock.seconds == 250


async def test_time_in_which_the_service_works_does_not_count(clock: Clock) -> None:
    client = Client(clock, 1, [b"x"] * 3)
    with strict(clock).slot() as slot:
        request = Request({"type": "http", "method": "POST", "headers": []}, client)
        async for _ in slot.read(request, 10**6, too_large):
            clock.seconds += 1000
            await turns(10)


async def test_interruption_ends_with_the_body(clock: Clock) -> None:
    """Later steps, such as storing the image, are not interrupted."""
    uploads = strict(clock)
    with uploads.slot() as slot:
        await read(slot, Client(clock, 1, [b"x"]))
        uploads.stop(0)
        await turns()


@pytest.mark.parametrize("chunks", [(), [b"x"] * 10**6], ids=["silent", "sending"])
async def test_stop_refuses_uploads_that_still_arrive(
    clock: Clock, loop_clock: LoopClock, chunks: Sequence[bytes]
) -> None:
    uploads = strict(clock)

    async def upload(client: Client) -> list[bytes]:
        with uploads.slot() as slot:
            return await read(slot, client)

    slow = asyncio.create_task(upload(Client(clock, 0, chunks)))
    fast = asyncio.create_task(upload(Client(clock, 0, [b"x"] * 3)))
    await turns(1)
    uploads.stop(1)
    assert await fast == [b"x"] * 3
    await loop_clock.move(1)
    with pytest.raises(Unavailable, match="shutting down"):
        await slow
    with pytest.raises(Unavailable, match="shutting down"):  # an upload that begins later
        await upload(Client(clock, 0))


async def test_stop_interrupts_work_between_chunks(clock: Clock) -> None:
    uploads = strict(clock)
    request = Request({"type": "http", "headers": []}, Client(clock, 0, [b"x"] * 3))
    uploads.stop(0.02)
    with pytest.raises(Unavailable, match="shutting down"), uploads.slot() as slot:
        async for _ in slot.read(request, 10**6, too_large):
            await asyncio.Event().wait()


async def test_cancellation_by_the_server_stays_a_cancellation(clock: Clock) -> None:
    """The limiter may interrupt the upload at the same time."""
    uploads = strict(clock)

    async def upload() -> None:
        with uploads.slot() as slot:
            await read(slot, Client(clock, 0))

    for interrupted in (False, True):
        task = asyncio.create_task(upload())
        await turns()
        if interrupted:
            uploads._stop()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
