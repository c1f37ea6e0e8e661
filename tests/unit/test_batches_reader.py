"""Limits of memory and time hold for forms, zips and buckets alike."""

import asyncio
import dataclasses
import tracemalloc
import zipfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, cast

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from app.batches import archive as archive_module
from app.batches.archive import ZipSpool, read_zip
from app.batches.bucket import BatchSize, ObjectPrefix
from app.batches.form import read_form
from app.batches.item import BatchItem
from app.batches.limits import BatchLimits
from app.batches.reader import BatchReader
from app.batches.storing import AT_ONCE, BatchStorer
from app.uploads import limiter
from app.uploads.limiter import UploadLimiter, UploadLimits
from core.backends import Backend, open_backend
from core.errors import (
    BatchTooLarge,
    Overloaded,
    Unavailable,
    UploadTooSlow,
)
from core.ports import StoredObject
from tests.support.api import api_settings
from tests.support.batches import (
    FORM,
    LIMITS,
    UPLOADS,
    ZIP,
    Stored,
    archive,
    cut,
    form,
    part,
    read_batch,
    refused_batch,
    request,
)
from tests.support.clock import turns
from tests.support.pictures import picture, sha256
from tests.support.sender import Sender

BUCKET = ObjectPrefix("photos", "")
IMAGE = picture()
GRACE = 60.0  # seconds that the client has
SLOW = 100.0  # seconds that one operation of the service takes


async def test_announced_excess_is_refused_unread(tmp_path: Path) -> None:
    for content_type in (FORM, ZIP):
        sender = Sender([])
        error = await refused_batch(sender, tmp_path, content_type, length="100001")
        assert isinstance(error, BatchTooLarge)
        assert error.extra == {"max_bytes": 100_000}
        assert sender.taken == 0


@pytest.mark.parametrize("length", [None, "10", "-1"])
async def test_unannounced_excess_is_refused_while_reading(
    tmp_path: Path, length: str | None
) -> None:
    for content_type, first in ((FORM, form(end=b"\r\n") + part(b"")), (ZIP, b"")):
        sender = Sender([first, *[bytes(40_000)] * 10])
        error = await refused_batch(sender, tmp_path, content_type, length=length)
        assert isinstance(error, BatchTooLarge)
        assert sender.taken == 4


@pytest.mark.parametrize("content_type", [FORM, ZIP])
async def test_memory_is_limited_to_a_few_images(tmp_path: Path, content_type: str) -> None:
    """A batch of 60 MB needs the memory of a few images of 1 MB."""
    size, count = 1_000_000, 60
    image = bytes(size)
    limits = BatchLimits(max_bytes=100_000_000, max_image_bytes=size)

    class Large(Sender):
        """Creates each chunk when it is read, so that the body takes no memory."""

        def __init__(self, pieces: list[bytes], times: int) -> None:
            super().__init__([])
            self.pieces, self.left = pieces, times * len(pieces)

        async def __call__(self):  # type: ignore[no-untyped-def]
            self.left -= 1
            body = self.pieces[-1 - self.left % len(self.pieces)]
            return {"type": "http.request", "body": body, "more_body": self.left > 0}

    if content_type == FORM:
        head = b"--frontier\r\n" + part(b"")
        last = form(part(b"x"))
        sender = Large(cut(head + image + b"\r\n", 64 * 1024), count)
    else:
        packed = archive([(f"{n}", image) for n in range(count)], zipfile.ZIP_STORED)
        sender = Large(cut(packed, 64 * 1024), 1)
        last = b""
    reserved = 0
    with UploadLimiter(UPLOADS).slot() as slot:

        async def store(item: BatchItem) -> None:
            nonlocal reserved
            reserved = max(reserved, slot.bytes_reserved)
            assert len(item.data) in (size, 1)
            slot.release(len(item.data))
            item.discard()

        async def receive():  # type: ignore[no-untyped-def]
            if sender.left > 0:
                message = await sender()
                return {**message, "more_body": bool(last) or message["more_body"]}
            return {"type": "http.request", "body": last, "more_body": False}

        batch = request(sender, content_type)
        batch._receive = receive
        tracemalloc.start()
        try:
            if content_type == FORM:
                await read_form(batch, slot, limits, ZipSpool(tmp_path), store)
            else:
                await read_zip(batch, slot, limits, ZipSpool(tmp_path), store)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert reserved <= size + 64 * 1024
    assert peak < 5 * size


@pytest.mark.parametrize("content_type", [FORM, ZIP])
async def test_disconnect_is_raised(tmp_path: Path, content_type: str) -> None:
    with pytest.raises(ClientDisconnect):
        await read_batch(Sender([form(part(b"x"))[:-9]], leaves=True), tmp_path, content_type)


async def test_batch_without_room_is_refused_and_releases_everything(tmp_path: Path) -> None:
    uploads = UploadLimiter(UploadLimits(max_bytes=500, min_bytes_per_second=1))
    with pytest.raises(Overloaded):
        await read_batch(form(part(bytes(900))), tmp_path, uploads=uploads)
    assert (uploads.in_flight, uploads.bytes_reserved) == (0, 0)
    # Released bytes make room for the next images.
    stored, _ = await read_batch(form(*[part(bytes(300))] * 5), tmp_path, uploads=uploads)
    assert stored.codes == [""] * 5
    assert (uploads.in_flight, uploads.bytes_reserved) == (0, 0)


# --- Time. ----------------------------------------------------------------------------------------


class Clock:
    """The clock of the limiter, which checks it in each turn of the event loop."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._loop = asyncio.get_running_loop()

    def __call__(self) -> float:
        return self.seconds

    def work(self) -> None:
        """Block this thread, which is not that of the loop, for `SLOW` seconds of this clock."""
        self.seconds += SLOW
        asyncio.run_coroutine_threadsafe(turns(10), self._loop).result(60)


class SlowClient(Sender):
    """Takes one second of the clock for each chunk."""

    def __init__(self, clock: Clock, chunks: Sequence[bytes], *, leaves: bool = False) -> None:
        super().__init__(chunks, leaves=leaves)
        self.clock = clock

    async def __call__(self) -> Message:
        self.clock.seconds += 1
        await turns(10)
        return await super().__call__()


class SlowFile:
    def __init__(self, file: IO[bytes], clock: Clock) -> None:
        self._file, self._clock = file, clock

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._file, name)

        def slow(*args: Any) -> Any:
            self._clock.work()
            return operation(*args)

        return slow if name in ("write", "read") else operation


class SlowSpool(ZipSpool):
    def __init__(self, folder: Path, clock: Clock) -> None:
        super().__init__(folder)
        self.clock = clock

    def open(self) -> IO[bytes]:
        self.clock.work()
        return cast(IO[bytes], SlowFile(super().open(), self.clock))


@pytest.fixture
async def clock() -> Clock:
    return Clock()


@pytest.fixture
def uploads(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> UploadLimiter:
    monkeypatch.setattr(limiter, "CHECK_SECONDS", 0.0)
    return UploadLimiter(
        UploadLimits(max_bytes=10**6, grace_seconds=GRACE, min_bytes_per_second=10**9),
        clock,
    )


async def test_slow_disk_does_not_count_against_the_client_of_a_zip(
    tmp_path: Path, clock: Clock, uploads: UploadLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "WRITE_BYTES", 100)
    sender = SlowClient(clock, cut(archive({"a": b"x" * 300}, zipfile.ZIP_STORED), 100))
    with uploads.slot() as slot:
        stored = Stored(slot)
        await read_zip(request(sender, ZIP), slot, LIMITS, SlowSpool(tmp_path, clock), stored)
    assert stored.bytes == [b"x" * 300]


async def test_slow_image_storage_does_not_count_against_the_client_of_a_form(
    clock: Clock, uploads: UploadLimiter, tmp_path: Path
) -> None:
    """The client cannot send while as many images are being stored as may be."""
    storing, full = 0, asyncio.Event()

    async def store(image: BatchItem) -> None:
        nonlocal storing
        storing += 1
        if storing < AT_ONCE:
            await full.wait()
        elif storing == AT_ONCE:
            await asyncio.sleep(0)  # until the service stops reading
            await asyncio.to_thread(clock.work)
            full.set()

    parts = [part(b"%d" % n) for n in range(AT_ONCE + 2)]
    sender = SlowClient(clock, cut(form(*parts), 100))
    with uploads.slot() as slot:
        storer = BatchStorer(store, slot, 10**6)
        spool = ZipSpool(tmp_path)
        await read_form(request(sender, FORM), slot, BatchLimits(10**5, 1000), spool, storer.store)
        assert len(await storer.finish()) == len(parts)


@pytest.mark.parametrize("content_type", [FORM, ZIP])
async def test_slow_client_is_refused(
    tmp_path: Path, clock: Clock, uploads: UploadLimiter, content_type: str
) -> None:
    sender = SlowClient(clock, [form(part(b"x"))[:20], *[b"x"] * 100], leaves=True)
    batch = request(sender, content_type)
    with pytest.raises(UploadTooSlow), uploads.slot() as slot:
        if content_type == FORM:
            await read_form(batch, slot, LIMITS, ZipSpool(tmp_path), Stored(slot))
        else:
            await read_zip(batch, slot, LIMITS, ZipSpool(tmp_path), Stored(slot))
    assert GRACE <= clock.seconds < GRACE + 5


class SlowSource:
    """A bucket with one image, whose operations take `SLOW` seconds of the clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def list(self, bucket: str, prefix: str, limit: int) -> Sequence[StoredObject]:
        await self._work()
        return [StoredObject("a.jpg", len(IMAGE))]

    async def read(self, bucket: str, name: str, max_bytes: int) -> bytes:
        await self._work()
        return IMAGE

    async def _work(self) -> None:
        await asyncio.to_thread(self._clock.work)


@asynccontextmanager
async def bucket_reader(
    tmp_path: Path, bundle: Path, source: SlowSource
) -> AsyncIterator[tuple[BatchReader, Backend]]:
    embedded = api_settings(tmp_path, bundle)
    embedded.data_dir.mkdir()
    importing = embedded.model_copy(update={"backend": "gcp", "import_buckets": ("photos",)})
    async with open_backend(embedded) as backend:
        yield BatchReader(importing, dataclasses.replace(backend, objects=source)), backend


async def test_slow_bucket_is_not_mistaken_for_a_slow_client(
    tmp_path: Path, colour_bundle: Path, clock: Clock, uploads: UploadLimiter
) -> None:
    async with bucket_reader(tmp_path, colour_bundle, SlowSource(clock)) as (reader, backend):
        with uploads.slot() as slot:
            (item,) = await reader.fetch(BUCKET, BatchSize(), "public", slot)
        assert (item.image_hash, item.error) == (sha256(IMAGE), None)
        assert await backend.blobs.get(f"public/{sha256(IMAGE)}") == IMAGE


class HangingSource(SlowSource):
    async def read(self, bucket: str, name: str, max_bytes: int) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError


async def test_shutdown_interrupts_reading_from_a_bucket(
    tmp_path: Path, colour_bundle: Path, clock: Clock, uploads: UploadLimiter
) -> None:
    async with bucket_reader(tmp_path, colour_bundle, HangingSource(clock)) as (reader, _):
        uploads.stop(0.05)
        with pytest.raises(Unavailable, match="shutting down"), uploads.slot() as slot:
            await reader.fetch(BUCKET, BatchSize(), "public", slot)
    assert (uploads.in_flight, uploads.bytes_reserved) == (0, 0)
