"""Slots bound uploads and their bytes, and send slow senders away."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Message

from app.uploads.image_upload import read_upload
from app.uploads.limiter import UploadLimits, UploadSlot, UploadSlots
from core.errors import Overloaded, Unavailable, UploadTooSlow

LIMITS = UploadLimits(uploads=3, bytes_=1000, grace=60, rate=1)


async def test_no_more_uploads_than_slots() -> None:
    slots = UploadSlots(LIMITS)
    with slots.take(), slots.take():
        with slots.take():
            assert slots.in_flight == 3
            with pytest.raises(Overloaded) as refused:
                slots.take()
            assert refused.value.retry_after in range(1, 6)
        with slots.take():
            pass
    assert slots.in_flight == 0


async def test_no_more_bytes_than_there_is_room_for() -> None:
    slots = UploadSlots(LIMITS)
    with slots.take() as first, slots.take() as second:
        first.hold(600)
        second.expect(400)
        with pytest.raises(Overloaded):
            second.expect(401)
        second.hold(400)
        with pytest.raises(Overloaded):
            first.hold(1)
        assert slots.bytes_held == 1000
        second.release()
        second.release()  # once
        assert (slots.bytes_held, slots.in_flight) == (600, 1)
        first.hold(400)
    assert (slots.bytes_held, slots.in_flight) == (0, 0)


async def test_what_is_let_go_of_makes_room_and_still_counts_as_sent() -> None:
    slots = UploadSlots(LIMITS)
    with slots.take() as slot:
        slot.hold(1000)
        slot.let_go(700)
        assert (slots.bytes_held, slot.held, slot.received) == (300, 300, 1000)
        slot.keep(700)  # nobody has sent these
        assert (slots.bytes_held, slot.held, slot.received) == (1000, 1000, 1000)
        with pytest.raises(Overloaded):
            slot.keep(1)
        slot.release()
        slot.let_go(500)  # too late: they are given back
        assert slots.bytes_held == 0


async def test_who_is_kept_waiting_is_not_slow_but_hears_of_a_stop() -> None:
    slots = UploadSlots(UploadLimits(uploads=1, bytes_=1000, grace=0.05, rate=10**6))

    async def pause(slot: UploadSlot, seconds: float) -> None:
        with slot.paused():
            await asyncio.sleep(seconds)

    async def pause_within(slot: UploadSlot) -> None:
        with slot.paused():
            await pause(slot, 0.01)
            await asyncio.sleep(0.6)

    with slots.take() as slot:
        await slot.reading(pause_within(slot))
        await slot.reading(pause(slot, 0.6))
        began = slot.began
        await slot.reading(pause(slot, 0.1))
        assert slot.began >= began + 0.1
        slots.stop(0.1)
        with pytest.raises(Unavailable, match="stopping"):
            await slot.reading(pause(slot, 60))


class Dripping:
    """A body whose chunks come `pause` seconds apart."""

    def __init__(self, pause: float, chunk: bytes = b"x", chunks: int = 10**6) -> None:
        self.pause, self.chunk, self.left = pause, chunk, chunks

    async def __call__(self) -> Message:
        await asyncio.sleep(self.pause)
        self.left -= 1
        return {"type": "http.request", "body": self.chunk, "more_body": self.left > 0}


async def read(slots: UploadSlots, body: Dripping) -> bytes:
    request = Request({"type": "http", "method": "POST", "headers": []}, body)
    with slots.take() as slot:
        return bytes((await read_upload(request, 10**6, slot)).data)


async def test_who_sends_slower_than_the_least_rate_is_sent_away() -> None:
    slots = UploadSlots(UploadLimits(uploads=2, bytes_=10**6, grace=0.1, rate=10**5))
    with pytest.raises(UploadTooSlow):
        await read(slots, Dripping(0.01))
    with pytest.raises(UploadTooSlow):
        await read(slots, Dripping(3600))  # says nothing at all
    assert (slots.in_flight, slots.bytes_held) == (0, 0)


async def test_who_sends_fast_enough_may_take_longer_than_the_grace() -> None:
    slots = UploadSlots(UploadLimits(uploads=1, bytes_=10**6, grace=2, rate=1000))
    body = Dripping(0.15, bytes(10_000), chunks=20)  # three seconds in all, at 67 kB a second
    assert len(await read(slots, body)) == 200_000


async def test_a_stop_sends_away_who_is_still_sending_then() -> None:
    slots = UploadSlots(UploadLimits(uploads=3, bytes_=10**6, grace=60, rate=1))
    slow, fast = (
        asyncio.create_task(read(slots, body))
        for body in (Dripping(0.01), Dripping(0.01, chunks=3))
    )
    await asyncio.sleep(0.005)
    slots.stop(2)
    assert await fast == b"xxx"
    with pytest.raises(Unavailable, match="stopping"):
        await slow
    with pytest.raises(Unavailable, match="stopping"):  # as who comes after that
        await read(slots, Dripping(0.01))
