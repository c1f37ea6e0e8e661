"""Images are stored while the next arrive, a few at a time, equal ones once."""

import asyncio
from collections.abc import Iterator

import pytest

from app.batches.limits import BatchImage
from app.batches.storing import AT_ONCE, Intake
from app.uploads.limiter import UploadLimits, UploadSlot, UploadSlots
from core.errors import InvalidImage, Unavailable
from tests.support.pictures import sha256


@pytest.fixture
async def slot() -> Iterator[UploadSlot]:  # type: ignore[misc]
    with UploadSlots(UploadLimits(uploads=1, bytes_=10**6, grace=60, rate=1)).take() as taken:
        yield taken


def image(data: bytes, slot: UploadSlot) -> BatchImage:
    slot.hold(len(data))
    return BatchImage("", bytearray(data), sha256(data))


class Storage:
    """Stores when it is told to."""

    def __init__(self, *, slow: bool = False) -> None:
        self.going_on = asyncio.Event()
        if not slow:
            self.going_on.set()
        self.now = self.most = 0
        self.stored: list[bytes] = []

    async def __call__(self, image: BatchImage) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await self.going_on.wait()
        await asyncio.sleep(0)
        self.now -= 1
        if image.data.startswith(b"bad"):
            raise InvalidImage("It is bad.")
        if image.data.startswith(b"storage"):
            raise Unavailable("The storage is away.")
        self.stored.append(bytes(image.data))


async def test_the_order_is_that_of_arrival_and_bytes_are_let_go(slot: UploadSlot) -> None:
    storage = Storage()
    intake = Intake(storage, slot, 10**6)
    sent = [b"%d" % n for n in range(50)]
    for each in sent:
        await intake.take(image(each, slot))
    images = await intake.finish()
    assert [each.image_hash for each in images] == [sha256(each) for each in sent]
    assert sorted(storage.stored) == sorted(sent)
    assert slot.held == 0
    assert not any(each.data for each in images)
    assert 1 < storage.most <= AT_ONCE


async def test_a_bad_image_fails_alone_and_so_does_its_like(slot: UploadSlot) -> None:
    storage = Storage()
    intake = Intake(storage, slot, 10**6)
    for each in (b"good", b"bad", b"good", b"bad", b"more"):
        await intake.take(image(each, slot))
    failed = BatchImage("", error=InvalidImage("It was bad before."))
    await intake.take(failed)
    images = await intake.finish()
    codes = [each.error and each.error.code for each in images]
    assert codes == [None, "invalid_image", None, "invalid_image", None, "invalid_image"]
    assert sorted(storage.stored) == [b"good", b"more"]
    assert slot.held == 0


async def test_a_storage_that_goes_on_failing_ends_the_batch(slot: UploadSlot) -> None:
    intake = Intake(Storage(), slot, 10**6)
    with pytest.raises(Unavailable):
        for number in range(100):
            await intake.take(image(b"storage" if number == 3 else b"%d" % number, slot))
        await intake.finish()
    await intake.close()
    assert slot.held == 0


async def test_one_fault_of_the_storage_costs_nothing_but_time(slot: UploadSlot) -> None:
    storage, faults = Storage(), iter([Unavailable("The storage is away.")])

    async def store(image: BatchImage) -> None:
        for fault in faults:
            raise fault
        await storage(image)

    intake = Intake(store, slot, 10**6)
    for number in range(10):
        await intake.take(image(b"%d" % number, slot))
    assert [each.error for each in await intake.finish()] == [None] * 10
    assert len(storage.stored) == 10


@pytest.mark.parametrize(("size", "most_bytes", "most"), [(10, 10**6, AT_ONCE), (100, 250, 3)])
async def test_the_sender_waits_until_there_is_room(
    slot: UploadSlot, size: int, most_bytes: int, most: int
) -> None:
    """Three of 100 bytes are more than 250: then it waits."""
    storage = Storage(slow=True)
    intake = Intake(storage, slot, most_bytes)

    async def send() -> None:
        for number in range(20):
            await intake.take(image(b"%03d" % number + bytes(size - 3), slot))

    sending = asyncio.create_task(send())
    for _ in range(50):
        await asyncio.sleep(0)
    assert storage.now == most
    assert slot.held == most * size
    assert slot.pauses
    storage.going_on.set()
    await sending
    assert len(await intake.finish()) == 20
    assert storage.most == most
    assert (slot.held, slot.pauses) == (0, False)


async def test_what_is_under_way_ends_with_the_batch(slot: UploadSlot) -> None:
    storage = Storage(slow=True)
    intake = Intake(storage, slot, 10**6)
    await intake.take(image(b"x", slot))
    await asyncio.sleep(0)
    await intake.close()
    storage.going_on.set()
    await asyncio.sleep(0.01)
    assert storage.stored == []
    assert slot.held == 0
