"""Every method of the BlobStore port."""

import asyncio
import os
from datetime import timedelta

import pytest

from core.backends import Backend
from core.domain.records import embedding_name, head_name, report_name, thumbnail_name
from core.errors import NotFound
from core.ports import BlobStore
from tests.contract.conftest import WITHOUT_FIRESTORE
from tests.support.pictures import sha256

DATA = os.urandom(100_000)
NAME = f"public/{sha256(DATA)}"


@pytest.fixture(params=WITHOUT_FIRESTORE)
def backend_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def blobs(backend: Backend) -> BlobStore:
    return backend.blobs


async def test_blob_is_returned_unchanged(blobs: BlobStore) -> None:
    await blobs.put(NAME, DATA, "image/jpeg")
    assert await blobs.get(NAME) == DATA
    assert await blobs.exists(NAME)


async def test_large_blob_is_returned_unchanged(blobs: BlobStore) -> None:
    """Google's client uploads more than 8 MiB in several requests."""
    data = DATA * 95
    name = f"public/{sha256(data)}"
    await blobs.put(name, data, "image/jpeg")
    await blobs.put(name, data, "image/jpeg")
    assert await blobs.get(name) == data


async def test_file_holds_the_blob_on_backends_with_files(blobs: BlobStore) -> None:
    await blobs.put(NAME, DATA, "image/jpeg")
    file = blobs.file(NAME)
    if file is not None:
        assert file.is_absolute()
        assert await asyncio.to_thread(file.read_bytes) == DATA


async def test_repeated_put_changes_nothing(blobs: BlobStore) -> None:
    await asyncio.gather(*(blobs.put(NAME, DATA, "image/jpeg") for _ in range(20)))
    await blobs.put(NAME, DATA, "image/png")
    assert await blobs.get(NAME) == DATA


async def test_missing_blob_is_not_found(blobs: BlobStore) -> None:
    assert not await blobs.exists(NAME)
    with pytest.raises(NotFound):
        await blobs.get(NAME)
    assert not await blobs.delete(NAME)


async def test_delete_takes_it_away_once(blobs: BlobStore) -> None:
    await blobs.put(NAME, DATA, "image/jpeg")
    assert await blobs.delete(NAME)
    assert not await blobs.exists(NAME)
    assert not await blobs.delete(NAME)
    await blobs.put(NAME, DATA, "image/jpeg")
    assert await blobs.get(NAME) == DATA


async def test_tenants_have_separate_blobs(blobs: BlobStore) -> None:
    await blobs.put(NAME, DATA, "image/jpeg")
    assert not await blobs.exists(NAME.replace("public", "acme"))
    assert not await blobs.delete(NAME.replace("public", "acme"))
    assert await blobs.exists(NAME)


async def test_derived_blobs_have_separate_names(blobs: BlobStore) -> None:
    image_hash = sha256(DATA)
    names = [
        NAME,
        embedding_name("public", "base@0123456789ab", image_hash),
        embedding_name("public", "base@ba9876543210", image_hash),
        embedding_name("acme", "base@0123456789ab", image_hash),
        head_name("public", "birds@0123456789ab"),
        report_name("public", "birds@0123456789ab"),
    ]
    for number, name in enumerate(names):
        await blobs.put(name, f"content {number}".encode(), "application/octet-stream")
    for number, name in enumerate(names):
        assert await blobs.get(name) == f"content {number}".encode()
    for name in names[1:]:
        assert await blobs.delete(name)
        assert not await blobs.exists(name)
    assert await blobs.exists(NAME)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "public",
        "public/",
        f"../{'a' * 64}",
        f"public/../{'a' * 64}",
        "public/../../etc/passwd",
        f"/public/{'a' * 64}",
        f"public/{'A' * 64}",
        f"public/{'a' * 63}",
        f"public/{'a' * 64}/b",
        f"public/{'a' * 64}\n",
        f"public\x00/{'a' * 64}",
        f"pub/lic/{'a' * 64}",
        f"public/embeddings/{'a' * 64}",
        f"public/embeddings/../{'a' * 64}",
        f"public/embeddings/base@0123456789ab/x/{'a' * 64}",
        f"public/heads/{'a' * 64}",
        "public/heads/../reports/birds@0123456789ab",
        "public/other/birds@0123456789ab",
    ],
)
async def test_name_outside_the_store_is_refused(blobs: BlobStore, name: str) -> None:
    with pytest.raises(NotFound):
        await blobs.put(name, DATA, "image/jpeg")
    with pytest.raises(NotFound):
        await blobs.get(name)
    with pytest.raises(NotFound):
        await blobs.exists(name)
    with pytest.raises(NotFound):
        await blobs.delete(name)
    with pytest.raises(NotFound):
        await blobs.signed_url(name, timedelta(minutes=1))


async def test_signed_link_reads_the_blob_and_an_unsigned_one_does_not(
    blobs: BlobStore,
) -> None:
    url = await blobs.signed_url(NAME, timedelta(minutes=15))
    path, _, query = url.partition("?")
    assert path.endswith(NAME)
    assert query


async def test_ping(blobs: BlobStore) -> None:
    await blobs.ping()


async def test_thumbnail_is_a_blob_beside_its_image(blobs: BlobStore) -> None:
    name = thumbnail_name(*NAME.split("/"))
    await blobs.put(NAME, DATA, "image/jpeg")
    assert not await blobs.exists(name)
    await blobs.put(name, b"RIFF", "image/webp")
    assert (await blobs.get(name), await blobs.get(NAME)) == (b"RIFF", DATA)
    assert await blobs.delete(name)
    assert await blobs.get(NAME) == DATA
