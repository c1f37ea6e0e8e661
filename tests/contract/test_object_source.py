"""Every method of the ObjectSource port. Only Google's backend has one."""

import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.backends import open_backend
from core.errors import NotFound, Unavailable
from core.ports import ObjectSource, StoredObject
from core.settings import Settings
from tests.support.buckets import fill, remove
from tests.support.settings import isolated_settings

DATA = os.urandom(300_000)


@pytest.fixture
def bucket() -> str:
    return f"imports-{secrets.token_hex(4)}"


@pytest.fixture
async def objects(emulator_settings: Settings, bucket: str) -> AsyncIterator[ObjectSource]:
    settings = emulator_settings.model_copy(update={"import_buckets": (bucket,)})
    async with open_backend(settings) as backend:
        assert backend.objects is not None
        yield backend.objects


async def test_names_are_listed_in_order_with_sizes(
    objects: ObjectSource, emulator_settings: Settings, bucket: str
) -> None:
    stored = {"b/2": b"22", "a/1": b"", "b/10": b"1010", "b.jpg": b"b", "b/é": b"e", "c": b"c"}
    await fill(emulator_settings, bucket, stored)
    assert await objects.list(bucket, "b/", 10) == [
        StoredObject("b/10", 4),
        StoredObject("b/2", 2),
        StoredObject("b/é", 1),
    ]
    names = [each.name for each in await objects.list(bucket, "", 10)]
    assert names == sorted(stored)


async def test_folder_markers_are_not_listed(
    objects: ObjectSource, emulator_settings: Settings, bucket: str
) -> None:
    await fill(emulator_settings, bucket, {"a/": b"", "b/": b"", "c": b"c"})
    assert await objects.list(bucket, "", 1) == [StoredObject("c", 1)]
    assert await objects.list(bucket, "a/", 1) == []


async def test_prefix_without_objects_lists_nothing(
    objects: ObjectSource, emulator_settings: Settings, bucket: str
) -> None:
    await fill(emulator_settings, bucket, {"a": b"a"})
    assert await objects.list(bucket, "nothing", 10) == []


async def test_list_returns_at_most_the_limit(
    objects: ObjectSource, emulator_settings: Settings, bucket: str
) -> None:
    await fill(emulator_settings, bucket, {f"{n}": b"x" for n in range(5)})
    assert [each.name for each in await objects.list(bucket, "", 3)] == ["0", "1", "2"]


async def test_object_is_returned_unchanged(
    objects: ObjectSource, emulator_settings: Settings, bucket: str
) -> None:
    await fill(emulator_settings, bucket, {"a/ä b?#.jpg": DATA, "empty": b""})
    assert await objects.read(bucket, "a/ä b?#.jpg", len(DATA)) == DATA
    assert await objects.read(bucket, "empty", 10) == b""


@pytest.mark.parametrize("most", [0, 1, 8192, 100_000, len(DATA) - 1])
async def test_larger_object_is_read_one_byte_beyond_the_limit(
    objects: ObjectSource, emulator_settings: Settings, bucket: str, most: int
) -> None:
    await fill(emulator_settings, bucket, {"large": DATA})
    assert await objects.read(bucket, "large", most) == DATA[: most + 1]


async def test_missing_bucket_and_object_are_not_found(
    objects: ObjectSource, emulator_settings: Settings, bucket: str
) -> None:
    with pytest.raises(NotFound, match="bucket"):
        await objects.list(bucket, "", 1)
    await fill(emulator_settings, bucket, {"a": b"a"})
    await remove(emulator_settings, bucket, "a")
    with pytest.raises(NotFound, match="object"):
        await objects.read(bucket, "a", 10)


async def test_closed_source_is_unavailable(emulator_settings: Settings, bucket: str) -> None:
    settings = emulator_settings.model_copy(update={"import_buckets": (bucket,)})
    async with open_backend(settings) as backend:
        objects = backend.objects
    assert objects is not None
    with pytest.raises(Unavailable):
        await objects.list(bucket, "", 1)


async def test_backend_has_no_source_unless_a_bucket_is_allowed(
    emulator_settings: Settings, tmp_path: Path
) -> None:
    embedded = isolated_settings(data_dir=tmp_path, import_buckets=("photos",))
    for settings in (emulator_settings, embedded):
        async with open_backend(settings) as backend:
            assert backend.objects is None
