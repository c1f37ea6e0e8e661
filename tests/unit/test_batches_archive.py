"""Zips are read one image at a time, within limits; hostile ones are refused."""

import hashlib
import io
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batches.archive import ZipEntries, ZipSpool
from app.batches.limits import BatchLimits
from app.batches.zip_format import MAX_DIRECTORY, DamagedEntry, unpacked
from core.errors import BatchTooLarge, GlimpseError, MalformedBody, Overloaded, Unavailable
from tests.support.batches import ZIP, archive, cut, nameless, patched, read_batch, refused_batch
from tests.support.sender import Sender

LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
async def test_images_of_a_zip_are_read_in_order(tmp_path: Path, method: int) -> None:
    images = {"b.jpg": b"one", "cats/a.jpg": b"two" * 300, "dogs/a.jpg": b"three"}
    stored, _ = await read_batch(archive(images, method), tmp_path, ZIP)
    assert stored.bytes == list(images.values())
    assert [each.name for each in stored.items] == ["b.jpg", "cats/a.jpg", "dogs/a.jpg"]
    assert stored.items[0].image_hash == hashlib.sha256(b"one").hexdigest()
    assert list((tmp_path / "spool").iterdir()) == []


async def test_folders_and_system_files_are_skipped(tmp_path: Path) -> None:
    images = ["photos/a.jpg", "./b.jpg", "../c.jpg"]
    names = ["photos/", ".DS_Store", "photos/.hidden/x.jpg", "__MACOSX/x.jpg", *images]
    stored, _ = await read_batch(
        archive([(name, b"x" * (name[-1] != "/")) for name in names]), tmp_path, ZIP
    )
    assert [each.name for each in stored.items] == ["photos/a.jpg", "b.jpg", "c.jpg"]
    assert stored.skipped == 3


async def test_folders_with_backslashes_are_skipped(tmp_path: Path) -> None:
    names = ["photos\\", "photos\\Thumbs\\", "photos\\.hidden\\x.jpg", "photos\\a.jpg"]
    stored, _ = await read_batch(
        archive([(name, b"x" * (name[-1] != "\\")) for name in names]), tmp_path, ZIP
    )
    assert [(each.name, each.error) for each in stored.items] == [("photos/a.jpg", None)]


async def test_entry_without_a_name_is_an_image(tmp_path: Path) -> None:
    stored, _ = await read_batch(nameless(), tmp_path, ZIP)
    assert (stored.bytes, stored.items[0].name) == ([b"x"], "")


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
    stored, _ = await read_batch(bytes(data), tmp_path, ZIP)
    assert stored.codes == ["invalid_image"] * 4 + [""]
    assert stored.bytes[4] == b"image 4" * 9
    details = [image.error.detail for image in stored.items if image.error]
    assert "encrypted" in details[0]
    assert "damaged" in details[1] and "damaged" in details[3]
    assert "neither stored nor deflated" in details[2]


async def test_entry_above_the_limit_fails_alone_for_any_declared_size(tmp_path: Path) -> None:
    data = archive([("bomb", bytes(80_000)), ("empty", b""), ("image", b"x")])
    for lie in (data, patched(data, CENTRAL, 24, "<I", 10), patched(data, LOCAL, 22, "<I", 10)):
        stored, _ = await read_batch(lie, tmp_path, ZIP)
        # Of an entry that declares less, less is read, which its checksum does not match.
        assert stored.codes in (
            ["image_too_large", "invalid_image", ""],
            ["invalid_image", "invalid_image", ""],
        )
        assert stored.most_reserved <= 1000


async def test_zip_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    """Each entry is within the limit, but their sum is not."""
    limits = BatchLimits(max_bytes=10_000, max_image_bytes=4000, max_items=5)
    body = archive([(f"{n}", bytes(3900)) for n in range(3)])
    assert len(body) < 1000
    error = await refused_batch(body, tmp_path, ZIP, limits)
    assert isinstance(error, BatchTooLarge)
    assert error.extra == {"max_bytes": 10_000}


async def test_no_more_of_an_entry_is_unpacked_than_it_declares(tmp_path: Path) -> None:
    """So the sum of the declared sizes limits what a zip unpacks to."""
    limits = BatchLimits(max_bytes=10_000, max_image_bytes=4000, max_items=5)
    body = bytearray(archive([(f"{n}", bytes(3900)) for n in range(3)]))
    for at in range(len(body)):
        if body[at : at + 4] == CENTRAL:
            struct.pack_into("<I", body, at + 24, 900)
    stored, _ = await read_batch(bytes(body), tmp_path, ZIP, limits)
    assert stored.codes == ["invalid_image"] * 3
    file = io.BytesIO(bytes(body))
    content = unpacked(file, ZipEntries(file, limits).images[0])
    with pytest.raises(DamagedEntry):
        for part_ in content:
            assert len(part_) <= 900


async def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    """A small archive that uses one stream many times unpacks to a large one."""
    body = archive({"a": bytes(range(256)) * 3})
    at, count = body.index(CENTRAL), 5
    entry, end = body[at : body.index(END)], bytearray(body[body.index(END) :])
    struct.pack_into("<HHI", end, 8, count, count, count * len(entry))
    body = body[:at] + entry * count + bytes(end)
    assert len(zipfile.ZipFile(io.BytesIO(body)).infolist()) == count
    error = await refused_batch(body, tmp_path, ZIP, BatchLimits(10**6, 1000))
    assert isinstance(error, MalformedBody)
    assert "overlap" in error.detail


async def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    five = archive([(f"{n}", b"x") for n in range(5)] + [("folder/", b"")])
    assert len((await read_batch(five, tmp_path, ZIP))[0].items) == 5
    error = await refused_batch(archive([(f"{n}", b"x") for n in range(6)]), tmp_path, ZIP)
    assert isinstance(error, BatchTooLarge)
    assert error.extra == {"max_items": 5}


async def test_large_directory_is_refused_unread(tmp_path: Path) -> None:
    """Its entries would take ten times their size in memory."""
    header = CENTRAL + bytes(42)
    count = MAX_DIRECTORY // len(header) + 1
    directory = header * count
    end = END + struct.pack("<HHHHIIH", 0, 0, 3, 3, len(directory), 0, 0)
    limits = BatchLimits(10**8, 1000)
    tracemalloc.start()
    try:
        error = await refused_batch(Sender(cut(directory + end, 60_000)), tmp_path, ZIP, limits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(error, MalformedBody)
    assert peak < 6 * MAX_DIRECTORY


ENDLESS = patched(archive({"a": b"x"}), END, 12, "<I", 2**31)
AFTER = patched(archive({"a": b"x"}), CENTRAL, 42, "<I", 2**31)
# The declared offset of the directory is too large, so the entries are before the beginning.
BEFORE = patched(archive({"a": b"x"}), END, 16, "<I", 2**31)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"PK",
        b"not a zip at all" * 100,
        archive({"a": b"x"})[:-5],
        patched(archive({"a": b"x"}), CENTRAL, 0, "<I", 0),
        ENDLESS,
    ],
)
async def test_unreadable_zips_are_malformed(tmp_path: Path, body: bytes) -> None:
    assert isinstance(await refused_batch(body, tmp_path, ZIP), MalformedBody)


async def test_empty_zip_has_no_images(tmp_path: Path) -> None:
    assert (await read_batch(archive({}), tmp_path, ZIP))[0].items == []


@pytest.mark.parametrize("body", [AFTER, BEFORE], ids=["after", "before"])
async def test_entry_outside_of_the_archive_fails_alone(tmp_path: Path, body: bytes) -> None:
    stored, _ = await read_batch(body, tmp_path, ZIP)
    assert stored.codes == ["invalid_image"]


def written(
    name: bytes,
    *,
    flags: int = 0,
    extra: bytes = b"",
    local: bytes | None = None,
    data: bytes = b"image",
) -> tuple[bytes, bytes]:
    """An entry with its header, and the entry of the directory, whose offset is zero."""
    local = name if local is None else local
    sizes = (zlib.crc32(data), len(data), len(data))
    header = LOCAL + struct.pack("<5H3I2H", 20, flags, 0, 0, 0, *sizes, len(local), 0)
    fields = (0x31E, 20, flags, 0, 0, 0, *sizes, len(name), len(extra), 0, 0, 0, 0, 0)
    return header + local + data, CENTRAL + struct.pack("<6H3I5H2I", *fields) + name + extra


def zip_of(*entries: tuple[bytes, bytes]) -> bytes:
    body, directory = b"", b""
    for content, listed in entries:
        directory += listed[:42] + struct.pack("<I", len(body)) + listed[46:]
        body += content
    count = len(entries)
    return (
        body
        + directory
        + END
        + struct.pack("<4H2IH", 0, 0, count, count, len(directory), len(body), 0)
    )


def unicode_path(name: bytes, shown: str) -> bytes:
    content = b"\1" + struct.pack("<I", zlib.crc32(name)) + shown.encode()
    return struct.pack("<HH", 0x7075, len(content)) + content


@pytest.mark.parametrize(
    ("entry", "shown"),
    [
        (written("Müller.jpg".encode()), "Müller.jpg"),
        (written("Müller.jpg".encode(), flags=0x800), "Müller.jpg"),
        (written("Müller.jpg".encode("cp437")), "Müller.jpg"),
        (written(b"M.jpg", extra=unicode_path(b"M.jpg", "Ω.jpg")), "Ω.jpg"),
        (written(b"M.jpg", extra=unicode_path(b"other", "Ω.jpg")), "M.jpg"),
        (written(b"M.jpg", extra=unicode_path(b"M.jpg", "Ω.jpg")[:-4]), "M.jpg"),
        (written(b"M.jpg", extra=unicode_path(b"M.jpg", "Ω.jpg").replace(b"\1", b"\2")), "M.jpg"),
        (written(b"\xff\xfe.jpg", flags=0x800), "\ufffd\ufffd.jpg"),
        (written(b"a.jpg", extra=b"\x75\x70\xff\xff\1"), "a.jpg"),
        (written(b"a.jpg", extra=b"\1"), "a.jpg"),
        (written(b"x/a.jpg", local=b"x\\a.jpg"), "x/a.jpg"),
        (written(b"a.jpg", local=b"another name.jpg"), "a.jpg"),
        (written(b"/home/me/a.jpg"), "a.jpg"),
        (written(b"C:\\Users\\me\\a.jpg"), "a.jpg"),
        (written("\u202fa\u3000.jpg".encode()), "\u202fa\u3000.jpg"),
        (written("a\u202eb\n.jpg".encode()), "a\ufffdb\ufffd.jpg"),
    ],
)
async def test_odd_header_costs_no_image(
    tmp_path: Path, entry: tuple[bytes, bytes], shown: str
) -> None:
    body = zip_of(written(b"first.jpg"), entry, written(b"last.jpg"))
    stored, _ = await read_batch(body, tmp_path, ZIP)
    assert [each.name for each in stored.items] == ["first.jpg", shown, "last.jpg"]
    assert stored.bytes == [b"image"] * 3


async def test_zip_behind_other_data_and_with_a_comment_is_read(tmp_path: Path) -> None:
    body = b"#!/bin/sh\n" * 9 + zip_of(written(b"a.jpg"))[:-2] + b"\7\0comment"
    stored, _ = await read_batch(body, tmp_path, ZIP)
    assert stored.bytes == [b"image"]


async def test_zip64_is_read(tmp_path: Path) -> None:
    """Programs that write a zip as a stream make such entries of any size."""
    large = struct.pack("<HHQQQ", 1, 24, 5, 5, 0)
    content, listed = written(b"a.jpg", extra=large)
    listed = listed[:20] + b"\xff" * 8 + listed[28:42] + b"\xff" * 4 + listed[46:]
    end64 = b"PK\6\6" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, 1, 1, len(listed), len(content))
    locator = b"PK\6\7" + struct.pack("<IQI", 0, len(content) + len(listed), 1)
    end = END + struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    stored, _ = await read_batch(content + listed + end64 + locator + end, tmp_path, ZIP)
    assert stored.bytes == [b"image"]


CLUTTER = [
    *("Thumbs.db", "x/desktop.ini", "x/Icon\r", "x/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg"),
    *("$RECYCLE.BIN/a.jpg", ".hidden/a.jpg", ".a.jpg", "x/__MACOSX/._a.jpg", "a.txt", "a.jpg.json"),
    *("IMG_1.AAE", "a.xmp", "metadata.jsonl", "a.jpg:Zone.Identifier"),
]


@pytest.mark.parametrize("name", CLUTTER)
async def test_files_beside_images_are_skipped_and_counted(tmp_path: Path, name: str) -> None:
    for path in (name, name.replace("/", "\\")):
        stored, _ = await read_batch(archive([("a.jpg", b"x"), (path, b"y")]), tmp_path, ZIP)
        assert [each.name for each in stored.items] == ["a.jpg"]
        assert stored.skipped == 1


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=8))
async def test_damaged_zip_is_no_server_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(archive({"a.jpg": b"image " * 20, "b/c.jpg": b"x" * 50, "d": b""}))
    for at, value in changes:
        data[at % len(data)] = value
    try:
        stored, _ = await read_batch(bytes(data), tmp_path_factory.getbasetemp(), ZIP)
    except GlimpseError as error:
        assert error.status < 500
    else:
        assert all((image.error is None) == bool(image.image_hash) for image in stored.items)


async def test_unusable_disk_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    assert isinstance(await refused_batch(archive({"a": b"x"}), tmp_path, ZIP), Unavailable)


async def test_number_of_spooled_zips_is_limited(tmp_path: Path) -> None:
    spool = ZipSpool(tmp_path)
    with spool.room(), spool.room(), spool.room():
        with spool.room(), pytest.raises(Overloaded), spool.room():
            pass
        with spool.room():
            pass
