"""The heads of trained models that a worker keeps as files for its classifier processes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.backends.embedded.blobs import FileBlobStore
from core.backends.links import LinkSigner
from core.domain.records import head_name
from core.errors import ModelUnavailable
from tests.support.heads import colour_head
from worker.inference.head_file import identity_of_head
from worker.inference.trained_models import TrainedModels

BASE = "colours@3cde192ffdf4"
TYPE = "application/octet-stream"


@pytest.fixture
async def blobs(tmp_path: Path) -> AsyncIterator[FileBlobStore]:
    store = FileBlobStore(tmp_path / "blobs", LinkSigner(b"secret", ""), free=lambda _: 1 << 40)
    yield store
    await store.close()


async def store_head(blobs: FileBlobStore, tenant: str, sharpness: float = 20.0) -> str:
    """Store a head as a training does. Returns the identity of the version."""
    data = colour_head(BASE, sharpness=sharpness)
    model = identity_of_head("moods", data)
    await blobs.put(head_name(tenant, model), data, TYPE)
    return model


def models_in(folder: Path, blobs: FileBlobStore, capacity: int) -> TrainedModels:
    (folder / "heads").mkdir()
    return TrainedModels(blobs, folder / "heads", capacity)


async def test_head_belongs_to_its_tenant(tmp_path: Path, blobs: FileBlobStore) -> None:
    models = models_in(tmp_path, blobs, 2)
    model = await store_head(blobs, "ada")
    found = await models.find("ada", model)
    assert found is not None
    assert (found.id, found.base) == (model, BASE)
    assert found.path.read_bytes() == colour_head(BASE)
    assert await models.find("bob", model) is None


async def test_damaged_head_is_not_used(tmp_path: Path, blobs: FileBlobStore) -> None:
    """One bit of a weight differs, so the file can still be read."""
    models = models_in(tmp_path, blobs, 2)
    data = bytearray(colour_head(BASE))
    model = identity_of_head("moods", bytes(data))
    data[-1] ^= 1
    await blobs.put(head_name("ada", model), bytes(data), TYPE)
    with pytest.raises(ModelUnavailable):
        await models.find("ada", model)


async def test_least_recently_used_head_is_deleted(tmp_path: Path, blobs: FileBlobStore) -> None:
    models = models_in(tmp_path, blobs, 2)
    first, second, third = [await store_head(blobs, "ada", sharpness) for sharpness in (1, 2, 3)]
    for model in (first, second, first, third):
        assert await models.find("ada", model)
    assert {path.name for path in (tmp_path / "heads").iterdir()} == {first, third}


async def test_head_that_another_tenant_uses_is_kept(tmp_path: Path, blobs: FileBlobStore) -> None:
    """Equal heads of two tenants have one identity, and share a file."""
    models = models_in(tmp_path, blobs, 2)
    shared, other = await store_head(blobs, "ada", 1), await store_head(blobs, "ada", 2)
    assert await store_head(blobs, "bob", 1) == shared
    await models.find("ada", shared)
    kept = await models.find("bob", shared)
    await models.find("ada", other)  # Ada's entry of the shared head is the oldest
    assert kept is not None
    assert kept.path.exists()
