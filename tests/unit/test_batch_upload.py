"""Batches are read one image at a time, within bounds, and hostile ones are refused plainly."""

import asyncio
import hashlib
import io
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.types import Message

from app.batches import archive as archive_module
from app.batches.archive import MAX_DIRECTORY, ZipEntries, ZipSpool, read_zip
from app.batches.form import read_form
from app.batches.item import BatchItem
from app.batches.limits import BatchLimits
from app.batches.storing import AT_ONCE, BatchStorer
from app.uploads import limiter
from app.uploads.limiter import UploadLimiter, UploadLimits, UploadSlot
from core.errors import (
    BatchTooLarge,
    GlimpseError,
    InvalidRequest,
    MalformedBody,
    Overloaded,
    Unavailable,
    UploadTooSlow,
)
from tests.support.batches import (
    FORM,
    archive,
    cut,
    form,
    manifest,
    nameless,
    part,
    patched,
    request,
)
from tests.support.sender import Sender

ZIP = "application/zip"
LIMITS = BatchLimits(max_bytes=100_000, max_image_bytes=1000, max_items=5)
SLOTS = UploadLimits(max_bytes=2**30, min_bytes_per_second=1)
LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


class Taken:
    """Takes images as the intake does: lets go of their bytes, and knows what was held."""

    def __init__(self, slot: UploadSlot) -> None:
        self.slot = slot
        self.images: list[BatchItem] = []
        self.bytes: list[bytes] = []
        self.most_held = 0

    async def __call__(self, image: BatchItem) -> None:
        self.most_held = max(self.most_held, self.slot.bytes_reserved)
        self.images.append(image)
        self.bytes.append(bytes(image.data))
        self.slot.release(len(image.data))
        image.discard()

    @property
    def codes(self) -> list[str]:
        return [image.error.code if image.error else "" for image in self.images]


async def read(
    body: bytes | Sender,
    folder: Path,
    content_type: str = FORM,
    limits: BatchLimits = LIMITS,
    slots: UploadLimiter | None = None,
    length: str | None = None,
) -> tuple[Taken, bytes]:
    sender = body if isinstance(body, Sender) else Sender(cut(body, 64))
    with (slots or UploadLimiter(SLOTS)).slot() as slot:
        taken = Taken(slot)
        headers = {} if length is None else {"content_length": length}
        asked = request(sender, content_type, **headers)
        if content_type == ZIP:
            await read_zip(asked, slot, limits, ZipSpool(folder / "spool"), taken)
            text = b""
        else:
            text = await read_form(asked, slot, limits, taken)
        assert slot.bytes_reserved == len(text)
        return taken, text


async def refusal(
    body: bytes | Sender,
    folder: Path,
    content_type: str = FORM,
    limits: BatchLimits = LIMITS,
    length: str | None = None,
) -> GlimpseError:
    with pytest.raises(GlimpseError) as refused:
        await read(body, folder, content_type, limits, length=length)
    return refused.value


# --- Forms. ---------------------------------------------------------------------------------------


async def test_images_of_a_form_are_read_in_order(tmp_path: Path) -> None:
    images = [b"one", b"two" * 100, b"three"]
    body = form(*(part(each, filename=b"%d.jpg" % n) for n, each in enumerate(images)))
    taken, text = await read(body, tmp_path)
    assert taken.bytes == images
    assert [each.name for each in taken.images] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [each.image_hash for each in taken.images] == [
        hashlib.sha256(each).hexdigest() for each in images
    ]
    assert text == b""


async def test_manifest_may_precede_or_follow_the_images(tmp_path: Path) -> None:
    for body in (form(manifest(b"{}"), part(b"x")), form(part(b"x"), manifest(b"{}"))):
        taken, text = await read(body, tmp_path)
        assert (taken.bytes, text) == ([b"x"], b"{}")


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5), st.integers(1, 300))
async def test_any_chunk_boundaries_give_the_same_images(
    tmp_path_factory: pytest.TempPathFactory, images: list[bytes], size: int
) -> None:
    body = form(manifest(b"[]"), *map(part, images))
    taken, text = await read(Sender(cut(body, size)), tmp_path_factory.getbasetemp())
    assert taken.bytes == images
    assert text == b"[]"
    assert taken.codes == ["" if each else "invalid_image" for each in images]


async def test_image_that_is_too_large_fails_alone(tmp_path: Path) -> None:
    body = form(part(b"a"), part(bytes(1000)), part(bytes(1001)), part(bytes(50_000)), part(b"b"))
    taken, _ = await read(body, tmp_path)
    assert taken.codes == ["", "", "image_too_large", "image_too_large", ""]
    assert taken.bytes[0] == b"a" and taken.bytes[4] == b"b"
    assert taken.images[2].image_hash == ""
    assert taken.most_held <= 1000 + 64, "it is skipped, and not held"


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"cat.jpg", "cat.jpg"),
        (b"../../etc/passwd", "passwd"),
        (b"C:\\\\photos\\\\cat.jpg", "cat.jpg"),
        (b"/", ""),
        (b"a\x1b[31m\x7f.jpg", "a[31m.jpg"),
        ("\u202egpj.exe".encode(), "gpj.exe"),
        ("Büro €.png".encode(), "Büro €.png"),
        (b"\xff\xfe.jpg", "\ufffd\ufffd.jpg"),
        (b"x" * 900, "x" * 200),
    ],
)
async def test_file_names_are_for_display_only(tmp_path: Path, sent: bytes, shown: str) -> None:
    taken, _ = await read(form(part(b"x", filename=sent)), tmp_path)
    assert taken.images[0].name == shown


async def test_form_with_too_many_images_is_refused_at_once(tmp_path: Path) -> None:
    body = form(*[part(b"x")] * 6) + bytes(10**6)
    sender = Sender(cut(body, 200))
    error = await refusal(sender, tmp_path, limits=BatchLimits(10**8, 1000, max_items=5))
    assert isinstance(error, BatchTooLarge)
    assert error.extra == {"max_items": 5}
    assert sender.taken < 6, "nothing is read that does not count"


async def test_announced_excess_is_refused_unread(tmp_path: Path) -> None:
    for content_type in (FORM, ZIP):
        sender = Sender([])
        error = await refusal(sender, tmp_path, content_type, length="100001")
        assert isinstance(error, BatchTooLarge)
        assert error.extra == {"max_bytes": 100_000}
        assert sender.taken == 0


@pytest.mark.parametrize("length", [None, "10", "-1"])
async def test_unannounced_excess_is_refused_while_reading(
    tmp_path: Path, length: str | None
) -> None:
    for content_type, first in ((FORM, form(end=b"\r\n") + part(b"")), (ZIP, b"")):
        sender = Sender([first, *[bytes(40_000)] * 10])
        error = await refusal(sender, tmp_path, content_type, length=length)
        assert isinstance(error, BatchTooLarge)
        assert sender.taken == 4


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form at all",
        form(part(b"bytes"), end=b""),
        form(part(b"bytes"))[:40],
        form(b"no headers here"),
        form(part(b"x"), b"X: " + b"y" * 20_000 + b"\r\n\r\n"),
    ],
)
async def test_unparsable_forms_are_malformed(tmp_path: Path, body: bytes) -> None:
    assert isinstance(await refusal(body, tmp_path), MalformedBody)
    assert isinstance(
        await refusal(form(part(b"x")), tmp_path, "multipart/form-data"), MalformedBody
    )


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (form(part(b"x"), part(b"high", "priority", b"")), "'imgs' and 'manifest'"),
        (form(part(b"x", "img")), "'imgs' and 'manifest'"),
        (form(b"Content-Type: image/png\r\n\r\nx"), "'imgs' and 'manifest'"),
        (form(manifest(b"{}"), manifest(b"{}")), "more than one field 'manifest'"),
    ],
)
async def test_unknown_and_repeated_fields_are_refused(
    tmp_path: Path, body: bytes, detail: str
) -> None:
    error = await refusal(body, tmp_path)
    assert isinstance(error, InvalidRequest)
    assert detail in error.detail


async def test_size_of_the_manifest_is_limited(tmp_path: Path) -> None:
    limits = BatchLimits(10**7, 1000)
    body = form(manifest(bytes(1024 * 1024)))
    assert len((await read(Sender(cut(body, 60_000)), tmp_path, limits=limits))[1]) == 1024 * 1024
    body = form(manifest(bytes(1024 * 1024 + 1)))
    error = await refusal(Sender(cut(body, 60_000)), tmp_path, limits=limits)
    assert isinstance(error, BatchTooLarge)


# --- Zips. ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
async def test_images_of_a_zip_are_read_in_order(tmp_path: Path, method: int) -> None:
    images = {"b.jpg": b"one", "cats/a.jpg": b"two" * 300, "dogs/a.jpg": b"three"}
    taken, _ = await read(archive(images, method), tmp_path, ZIP)
    assert taken.bytes == list(images.values())
    assert [each.name for each in taken.images] == ["b.jpg", "a.jpg", "a.jpg"]
    assert taken.images[0].image_hash == hashlib.sha256(b"one").hexdigest()
    assert list((tmp_path / "spool").iterdir()) == []


async def test_folders_and_system_files_are_skipped(tmp_path: Path) -> None:
    images = ["photos/a.jpg", "./b.jpg", "../c.jpg"]
    names = ["photos/", ".DS_Store", "photos/.hidden/x.jpg", "__MACOSX/x.jpg", *images]
    taken, _ = await read(
        archive([(name, b"x" * (name[-1] != "/")) for name in names]), tmp_path, ZIP
    )
    assert [each.name for each in taken.images] == ["a.jpg", "b.jpg", "c.jpg"]


async def test_folders_with_backslashes_are_skipped(tmp_path: Path) -> None:
    names = ["photos\\", "photos\\Thumbs\\", "photos\\.hidden\\x.jpg", "photos\\a.jpg"]
    taken, _ = await read(
        archive([(name, b"x" * (name[-1] != "\\")) for name in names]), tmp_path, ZIP
    )
    assert [(each.name, each.error) for each in taken.images] == [("a.jpg", None)]


async def test_entry_without_a_name_is_an_image(tmp_path: Path) -> None:
    taken, _ = await read(nameless(), tmp_path, ZIP)
    assert (taken.bytes, taken.images[0].name) == ([b"x"], "")


@pytest.mark.filterwarnings("ignore:Duplicate name")
async def test_invalid_entries_fail_alone(tmp_path: Path) -> None:
    good = archive([(f"{n}", b"image %d" % n * 9) for n in range(5)])
    data = bytearray(good)
    local = [i for i in range(len(data)) if data[i : i + 4] == LOCAL]
    central = [i for i in range(len(data)) if data[i : i + 4] == CENTRAL]
    for at, offset in ((local[0], 6), (central[0], 8)):
        data[at + offset] |= 1  # encrypted
    data[local[1] + 31 : local[1] + 40] = b"\xff" * 9  # no deflate stream
    struct.pack_into("<H", data, central[2] + 10, zipfile.ZIP_LZMA)
    struct.pack_into("<I", data, central[3] + 16, 0)  # another checksum
    taken, _ = await read(bytes(data), tmp_path, ZIP)
    assert taken.codes == ["invalid_image"] * 4 + [""]
    assert taken.bytes[4] == b"image 4" * 9
    details = [image.error.detail for image in taken.images if image.error]
    assert "encrypted" in details[0]
    assert "damaged" in details[1] and "damaged" in details[3]
    assert "neither stored nor deflated" in details[2]


async def test_entry_that_is_too_large_fails_alone_whatever_it_declares(tmp_path: Path) -> None:
    data = archive([("bomb", bytes(80_000)), ("empty", b""), ("image", b"x")])
    for lie in (data, patched(data, CENTRAL, 24, "<I", 10), patched(data, LOCAL, 22, "<I", 10)):
        taken, _ = await read(lie, tmp_path, ZIP)
        # Whoever claims less gets less read, and that does not fit its checksum.
        assert taken.codes in (
            ["image_too_large", "invalid_image", ""],
            ["invalid_image", "invalid_image", ""],
        )
        assert taken.most_held <= 1000


async def test_zip_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    """Each entry is within the limit; all of them together are not."""
    limits = BatchLimits(max_bytes=10_000, max_image_bytes=4000, max_items=5)
    body = archive([(f"{n}", bytes(3900)) for n in range(3)])
    assert len(body) < 1000
    error = await refusal(body, tmp_path, ZIP, limits)
    assert isinstance(error, BatchTooLarge)
    assert error.extra == {"max_bytes": 10_000}


async def test_no_more_of_an_entry_is_unpacked_than_it_declares(tmp_path: Path) -> None:
    """So that the claims of all of them bound what they unpack to."""
    limits = BatchLimits(max_bytes=10_000, max_image_bytes=4000, max_items=5)
    body = bytearray(archive([(f"{n}", bytes(3900)) for n in range(3)]))
    for at in range(len(body)):
        if body[at : at + 4] == CENTRAL:
            struct.pack_into("<I", body, at + 24, 900)
    taken, _ = await read(bytes(body), tmp_path, ZIP, limits)
    assert taken.codes == ["invalid_image"] * 3
    entries = ZipEntries(io.BytesIO(bytes(body)), limits)
    with entries._archive.open(entries.images[0]) as entry, pytest.raises(zipfile.BadZipFile):
        while part_ := entry.read(100):
            assert len(part_) <= 100
            assert entry.tell() < 900


async def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    """A small archive that unpacks to a large one by using one stream many times."""
    body = archive({"a": bytes(range(256)) * 3})
    at, count = body.index(CENTRAL), 5
    entry, end = body[at : body.index(END)], bytearray(body[body.index(END) :])
    struct.pack_into("<HHI", end, 8, count, count, count * len(entry))
    body = body[:at] + entry * count + bytes(end)
    assert len(zipfile.ZipFile(io.BytesIO(body)).infolist()) == count
    error = await refusal(body, tmp_path, ZIP, BatchLimits(10**6, 1000))
    assert isinstance(error, MalformedBody)
    assert "overlap" in error.detail


async def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    five = archive([(f"{n}", b"x") for n in range(5)] + [("folder/", b"")])
    assert len((await read(five, tmp_path, ZIP))[0].images) == 5
    error = await refusal(archive([(f"{n}", b"x") for n in range(6)]), tmp_path, ZIP)
    assert isinstance(error, BatchTooLarge)
    assert error.extra == {"max_items": 5}


async def test_large_directory_is_refused_unread(tmp_path: Path) -> None:
    """Each of its entries would take ten times its size in memory."""
    header = CENTRAL + bytes(42)
    count = MAX_DIRECTORY // len(header) + 1
    directory = header * count
    end = END + struct.pack("<HHHHIIH", 0, 0, 3, 3, len(directory), 0, 0)
    limits = BatchLimits(10**8, 1000)
    tracemalloc.start()
    try:
        error = await refusal(Sender(cut(directory + end, 60_000)), tmp_path, ZIP, limits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(error, MalformedBody)
    assert peak < 6 * MAX_DIRECTORY


ENDLESS = patched(archive({"a": b"x"}), END, 12, "<I", 2**31)
BEHIND = patched(archive({"a": b"x"}), CENTRAL, 42, "<I", 2**31)
# The directory is said to lie later than it does, and so each entry earlier: before the beginning.
BEFORE = patched(archive({"a": b"x"}), END, 16, "<I", 2**31)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"PK",
        b"not a zip at all" * 100,
        archive({"a": b"x"})[:-5],
        patched(archive({"a": b"x"}), CENTRAL, 8, "<HH", 0x800, 0).replace(b"a", b"\xff"),
        ENDLESS,
    ],
)
async def test_unreadable_zips_are_malformed(tmp_path: Path, body: bytes) -> None:
    assert isinstance(await refusal(body, tmp_path, ZIP), MalformedBody)


async def test_empty_zip_has_no_images(tmp_path: Path) -> None:
    assert (await read(archive({}), tmp_path, ZIP))[0].images == []


@pytest.mark.parametrize("body", [BEHIND, BEFORE], ids=["behind", "before"])
async def test_entry_outside_of_the_archive_fails_alone(tmp_path: Path, body: bytes) -> None:
    taken, _ = await read(body, tmp_path, ZIP)
    assert taken.codes == ["invalid_image"]


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=8))
async def test_damaged_zip_is_no_server_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(archive({"a.jpg": b"image " * 20, "b/c.jpg": b"x" * 50, "d": b""}))
    for at, value in changes:
        data[at % len(data)] = value
    try:
        taken, _ = await read(bytes(data), tmp_path_factory.getbasetemp(), ZIP)
    except GlimpseError as error:
        assert error.status < 500
    else:
        assert all((image.error is None) == bool(image.image_hash) for image in taken.images)


async def test_unusable_disk_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    assert isinstance(await refusal(archive({"a": b"x"}), tmp_path, ZIP), Unavailable)


async def test_number_of_spooled_zips_is_limited(tmp_path: Path) -> None:
    spool = ZipSpool(tmp_path)
    with spool.room(), spool.room(), spool.room():
        with spool.room(), pytest.raises(Overloaded), spool.room():
            pass
        with spool.room():
            pass


# --- Memory, leaving, slowness. -------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [FORM, ZIP])
async def test_memory_is_limited_to_a_few_images(tmp_path: Path, content_type: str) -> None:
    """Of sixty megabytes, no more than three of one are there at once."""
    size, count = 1_000_000, 60
    image = bytes(size)
    limits = BatchLimits(max_bytes=100_000_000, max_image_bytes=size)

    class Large(Sender):
        """Makes its chunks when they are asked for."""

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
    held = 0
    with UploadLimiter(SLOTS).slot() as slot:

        async def take(each: BatchItem) -> None:
            nonlocal held
            held = max(held, slot.bytes_reserved)
            assert len(each.data) in (size, 1)
            slot.release(len(each.data))
            each.discard()

        async def receive():  # type: ignore[no-untyped-def]
            if sender.left > 0:
                message = await sender()
                return {**message, "more_body": bool(last) or message["more_body"]}
            return {"type": "http.request", "body": last, "more_body": False}

        asked = request(sender, content_type)
        asked._receive = receive
        tracemalloc.start()
        try:
            if content_type == FORM:
                await read_form(asked, slot, limits, take)
            else:
                await read_zip(asked, slot, limits, ZipSpool(tmp_path), take)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert held <= size + 64 * 1024
    assert peak < 5 * size


@pytest.mark.parametrize("content_type", [FORM, ZIP])
async def test_disconnect_is_raised(tmp_path: Path, content_type: str) -> None:
    with pytest.raises(ClientDisconnect):
        await read(Sender([form(part(b"x"))[:-9]], leaves=True), tmp_path, content_type)


async def test_batch_without_room_is_refused_and_releases_everything(tmp_path: Path) -> None:
    slots = UploadLimiter(UploadLimits(max_bytes=500, min_bytes_per_second=1))
    with pytest.raises(Overloaded):
        await read(form(part(bytes(900))), tmp_path, slots=slots)
    assert (slots.in_flight, slots.bytes_reserved) == (0, 0)
    # What is let go of in between makes room again.
    taken, _ = await read(form(*[part(bytes(300))] * 5), tmp_path, slots=slots)
    assert taken.codes == [""] * 5
    assert (slots.in_flight, slots.bytes_reserved) == (0, 0)


# --- Time limits. ---------------------------------------------------------------------------------

GRACE = 60.0  # seconds that the sender has
SLOW = 100.0  # seconds that one operation of ours takes


class Clock:
    """Moves when told. The limiter looks at it every millisecond."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def work(self) -> None:
        """Block this thread, for a long time on this clock."""
        self.seconds += SLOW
        time.sleep(0.01)


class SlowSender(Sender):
    """Takes a second for each chunk."""

    def __init__(self, clock: Clock, chunks: Sequence[bytes], *, leaves: bool = False) -> None:
        super().__init__(chunks, leaves=leaves)
        self.clock = clock

    async def __call__(self) -> Message:
        self.clock.seconds += 1
        await asyncio.sleep(0.01)
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
def clock() -> Clock:
    return Clock()


@pytest.fixture
def slots(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> UploadLimiter:
    monkeypatch.setattr(limiter, "CHECK_SECONDS", 0.001)
    return UploadLimiter(
        UploadLimits(max_bytes=10**6, grace_seconds=GRACE, min_bytes_per_second=10**9),
        clock,
    )


async def test_slow_disk_does_not_count_against_the_sender_of_a_zip(
    tmp_path: Path, clock: Clock, slots: UploadLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "WRITE_BYTES", 100)
    sender = SlowSender(clock, cut(archive({"a": b"x" * 300}, zipfile.ZIP_STORED), 100))
    with slots.slot() as slot:
        taken = Taken(slot)
        await read_zip(request(sender, ZIP), slot, LIMITS, SlowSpool(tmp_path, clock), taken)
    assert taken.bytes == [b"x" * 300]


async def test_slow_image_storage_does_not_count_against_the_sender_of_a_form(
    clock: Clock, slots: UploadLimiter
) -> None:
    """While the storage has as many images as it takes at once, the sender cannot send."""
    storing, full = 0, asyncio.Event()

    async def store(image: BatchItem) -> None:
        nonlocal storing
        storing += 1
        if storing < AT_ONCE:
            await full.wait()
        elif storing == AT_ONCE:
            await asyncio.sleep(0)  # until the sender waits
            await asyncio.to_thread(clock.work)
            full.set()

    parts = [part(b"%d" % n) for n in range(AT_ONCE + 2)]
    sender = SlowSender(clock, cut(form(*parts), 100))
    with slots.slot() as slot:
        storer = BatchStorer(store, slot, 10**6)
        await read_form(request(sender, FORM), slot, BatchLimits(10**5, 1000), storer.store)
        assert len(await storer.finish()) == len(parts)


@pytest.mark.parametrize("content_type", [FORM, ZIP])
async def test_sender_that_is_too_slow_is_refused(
    tmp_path: Path, clock: Clock, slots: UploadLimiter, content_type: str
) -> None:
    sender = SlowSender(clock, [form(part(b"x"))[:20], *[b"x"] * 100], leaves=True)
    asked = request(sender, content_type)
    with pytest.raises(UploadTooSlow), slots.slot() as slot:
        if content_type == FORM:
            await read_form(asked, slot, LIMITS, Taken(slot))
        else:
            await read_zip(asked, slot, LIMITS, ZipSpool(tmp_path), Taken(slot))
    assert GRACE <= clock.seconds < GRACE + 5
