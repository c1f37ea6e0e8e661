"""`gs://bucket/prefix`, and the names of items that are imported from it."""

import asyncio
from collections.abc import Sequence

import pytest

from app.batches.bucket import AT_ONCE, BatchSize, BucketReader, ObjectPrefix, relative_name
from app.uploads.limiter import UploadLimiter
from core.errors import BatchTooLarge, InvalidRequest, NotFound
from core.ports import StoredObject
from tests.support.batches import LIMITS, UPLOADS, Stored
from tests.support.pictures import sha256


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [
        ("gs://photos/", "photos", ""),
        ("gs://photos/2026/11", "photos", "2026/11"),
        ("gs://my.photos_2-b//a?b#c*[1] \u00e4", "my.photos_2-b", "/a?b#c*[1] \u00e4"),
        ("gs://photos/../images/x", "photos", "../images/x"),
        ("gs://photos/" + "\u00e4" * 512, "photos", "\u00e4" * 512),
    ],
)
def test_valid_prefixes(text: str, bucket: str, prefix: str) -> None:
    assert ObjectPrefix.parse(text) == ObjectPrefix(bucket, prefix)


@pytest.mark.parametrize(
    "text",
    [
        *("", "photos", "gs://", "gs://photos", "gs:///a", "gs://ab/", "GS://photos/a"),
        *("https://photos/a", "file:///etc/passwd", "gs://Photos/a", "gs://u:p@photos/a"),
        *("gs://photos:443/a", "gs://pho tos/a", "gs://-photos/a", "gs://photos./a"),
        *(" gs://photos/a", "gs://photos/a\nb", "gs://photos/a\n", "gs://photos/\ud800"),
        *("gs://photos/" + "\u00e4" * 513, f"gs://{'a' * 223}/"),
    ],
)
def test_invalid_prefixes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is "):
        ObjectPrefix.parse(text)


@pytest.mark.parametrize(
    ("prefix", "name", "shown"),
    [
        ("", "a.jpg", "a.jpg"),
        ("2026/", "2026/a.jpg", "a.jpg"),
        ("2026/a.jpg", "2026/a.jpg", "a.jpg"),
        ("2026/a", "2026/ab/c.jpg", "ab/c.jpg"),
        ("", "/../../etc/./passwd", "etc/passwd"),
        ("", "a\x1b[31m\r\n/b\u202e.jpg", "a\ufffd[31m\ufffd\ufffd/b\ufffd.jpg"),
        ("", "c:\\..\\x.jpg", "x.jpg"),
        ("", "a/" + "x" * 600, "x" * 500),
    ],
)
def test_names_are_relative_to_the_folder_of_the_prefix(prefix: str, name: str, shown: str) -> None:
    assert relative_name(name, ObjectPrefix("photos", prefix)) == shown


# --- Reading. -------------------------------------------------------------------------------------


class Bucket:
    """Lists objects with the sizes of `listed`, and reads the bytes of `stored`."""

    def __init__(self, listed: dict[str, int], stored: dict[str, bytes]) -> None:
        self.listed, self.stored = listed, stored
        self.reading = self.most_reading = 0

    async def list(self, bucket: str, prefix: str, limit: int) -> Sequence[StoredObject]:
        return [StoredObject(name, size) for name, size in self.listed.items()][:limit]

    async def read(self, bucket: str, name: str, max_bytes: int) -> bytes:
        self.reading += 1
        self.most_reading = max(self.most_reading, self.reading)
        await asyncio.sleep(0)
        self.reading -= 1
        if name not in self.stored:
            raise NotFound("There is no such object.")
        return self.stored[name][: max_bytes + 1]


async def read(bucket: Bucket, before: BatchSize = BatchSize()) -> Stored:  # noqa: B008 - frozen
    with UploadLimiter(UPLOADS).slot() as slot:
        stored = Stored(slot)
        await BucketReader(bucket, ObjectPrefix("photos", ""), slot, LIMITS).read(before, stored)
        assert slot.bytes_reserved == 0
    return stored


async def test_objects_are_read_in_order() -> None:
    contents = {f"{n}.jpg": b"%d" % n * 100 for n in range(5)}
    stored = await read(Bucket({name: len(data) for name, data in contents.items()}, contents))
    assert [item.name for item in stored.items] == list(contents)
    assert stored.bytes == list(contents.values())
    assert [item.image_hash for item in stored.items] == [sha256(data) for data in stored.bytes]


async def test_objects_that_change_after_the_listing_fail_alone() -> None:
    """The limiter gets back what was reserved for the listed size."""
    listed = {"gone": 10, "grown": 10, "shrunk": 10, "emptied": 10, "kept": 10}
    contents = {"grown": b"x" * 11, "shrunk": b"x" * 9, "emptied": b"", "kept": b"x" * 10}
    stored = await read(Bucket(listed, contents))
    assert stored.codes == ["not_found", "conflict", "", "invalid_image", ""]
    assert stored.bytes == [b"", b"", b"x" * 9, b"", b"x" * 10]


async def test_objects_of_an_unsuitable_size_are_not_read() -> None:
    stored = await read(Bucket({"large": 1001, "empty": 0}, {}))
    assert stored.codes == ["image_too_large", "invalid_image"]


@pytest.mark.parametrize(("size", "at_once"), [(1000, 1), (400, 2), (10, 5)])
async def test_objects_are_read_concurrently_within_the_size_of_one_image(
    size: int, at_once: int
) -> None:
    contents = {f"{n}": bytes(size) for n in range(5)}
    bucket = Bucket(dict.fromkeys(contents, size), contents)
    stored = await read(bucket)
    assert bucket.most_reading == at_once <= AT_ONCE
    assert stored.most_reserved <= LIMITS.max_image_bytes


async def test_batch_with_too_many_or_too_large_objects_is_refused_unread() -> None:
    six = Bucket({f"{n}": 1 for n in range(6)}, {})
    for bucket, before, extra in (
        (six, BatchSize(), {"max_items": 5}),
        (Bucket({"a": 1}, {}), BatchSize(items=5), {"max_items": 5}),
        (Bucket({"a": 1000}, {}), BatchSize(bytes_=99_001), {"max_bytes": 100_000}),
    ):
        with pytest.raises(BatchTooLarge) as refused:
            await read(bucket, before)
        assert refused.value.extra == extra
        assert bucket.most_reading == 0


async def test_prefix_without_objects_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        await read(Bucket({}, {}))
    assert refused.value.extra == {"field": "gs_prefix"}
