"""Images are stored concurrently, a few at a time, and equal ones once."""

import asyncio
from collections.abc import Iterator

import pytest

from app.batches import storing
from app.batches.item import BatchItem
from app.batches.storing import AT_ONCE, BatchStorer
from app.uploads.limiter import UploadLimiter, UploadLimits, UploadSlot
from core.errors import InvalidImage, Unavailable
from tests.support.clock import turns
from tests.support.pictures import sha256


@pytest.fixture
async def slot() -> Iterator[UploadSlot]:  # type: ignore[misc]
    with UploadLimiter(UploadLimits(max_bytes=10**6, min_bytes_per_second=1)).slot() as slot:
        yield slot


def image(data: bytes, slot: UploadSlot) -> BatchItem:
    slot.reserve(len(data))
    item = BatchItem.empty("", 10**6)
    assert item.add(data)
    return item.finish()


class Storage:
    """Stores images; if `slow`, not before `resume` is set."""

    def __init__(self, *, slow: bool = False) -> None:
        self.resume = asyncio.Event()
        if not slow:
            self.resume.set()
        self.now = self.most = 0
        self.stored: list[bytes] = []

    async def __call__(self, image: BatchItem) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await self.resume.wait()
        await asyncio.sleep(0)
        self.now -= 1
        if image.data.startswith(b"bad"):
            raise InvalidImage("It is invalid.")
        if image.data.startswith(b"storage"):
            raise Unavailable("The storage does not answer.")
        self.stored.append(bytes(image.data))


async def test_items_keep_their_order_and_release_their_bytes(slot: UploadSlot) -> None:
    storage = Storage()
    storer = BatchStorer(storage, slot, 10**6)
    sent = [b"%d" % n for n in range(50)]
    for each in sent:
        await storer.store(image(each, slot))
    images = await storer.finish()
    assert [each.image_hash for each in images] == [sha256(each) for each in sent]
    assert sorted(storage.stored) == sorted(sent)
    assert slot.bytes_reserved == 0
    assert not any(each.data for each in images)
    assert 1 < storage.most <= AT_ONCE


async def test_invalid_image_fails_alone_with_its_duplicates(slot: UploadSlot) -> None:
    storage = Storage()
    storer = BatchStorer(storage, slot, 10**6)
    for each in (b"good", b"bad", b"good", b"bad", b"more"):
        await storer.store(image(each, slot))
    failed = BatchItem("", error=InvalidImage("It was invalid before."))
    await storer.store(failed)
    images = await storer.finish()
    codes = [each.error and each.error.code for each in images]
    assert codes == [None, "invalid_image", None, "invalid_image", None, "invalid_image"]
    assert sorted(storage.stored) == [b"good", b"more"]
    assert slot.bytes_reserved == 0


async def test_lasting_storage_failure_ends_the_batch(
    slot: UploadSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "PAUSES", (0.0, 0.0, 0.0))
    storer = BatchStorer(Storage(), slot, 10**6)
    with pytest.raises(Unavailable):
        for number in range(100):
            await storer.store(image(b"storage" if number == 3 else b"%d" % number, slot))
        await storer.finish()
    await storer.close()
    assert slot.bytes_reserved == 0


async def test_transient_storage_failure_is_retried(
    slot: UploadSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "PAUSES", (0.0, 0.0, 0.0))
    storage, faults = Storage(), iter([Unavailable("The storage does not answer.")])

    async def store(image: BatchItem) -> None:
        for fault in faults:
            raise fault
        await storage(image)

    storer = BatchStorer(store, slot, 10**6)
    for number in range(10):
        await storer.store(image(b"%d" % number, slot))
    assert [each.error for each in await storer.finish()] == [None] * 10
    assert len(storage.stored) == 10


@pytest.mark.parametrize(("size", "most_bytes", "most"), [(10, 10**6, AT_ONCE), (100, 250, 3)])
async def test_store_waits_until_there_is_room(
    slot: UploadSlot, size: int, most_bytes: int, most: int
) -> None:
    """Three images of 100 bytes are more than 250 bytes."""
    storage = Storage(slow=True)
    storer = BatchStorer(storage, slot, most_bytes)

    async def send() -> None:
        for number in range(20):
            await storer.store(image(b"%03d" % number + bytes(size - 3), slot))

    sending = asyncio.create_task(send())
    await turns()
    assert storage.now == most
    assert slot.bytes_reserved == most * size
    storage.resume.set()
    await sending
    assert len(await storer.finish()) == 20
    assert storage.most == most
    assert slot.bytes_reserved == 0


async def test_close_cancels_images_that_are_being_stored(slot: UploadSlot) -> None:
    storage = Storage(slow=True)
    storer = BatchStorer(storage, slot, 10**6)
    await storer.store(image(b"x", slot))
    await asyncio.sleep(0)
    await storer.close()
    storage.resume.set()
    await turns()
    assert storage.stored == []
    assert slot.bytes_reserved == 0
