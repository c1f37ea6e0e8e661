"""Blobs whose folder is missing for a moment, as a disk that is mounted again."""

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from core.backends.embedded import blobs
from core.backends.embedded.blobs import FileBlobStore
from core.backends.links import LinkSigner
from core.errors import Unavailable

NAME = f"public/{'ab' * 32}"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileBlobStore]:
    store = FileBlobStore(tmp_path / "blobs", LinkSigner(b"secret", ""), free=lambda _: 1 << 40)
    await store.put(NAME, b"an image", "image/jpeg")
    yield store
    await store.close()


@pytest.fixture
def missing(tmp_path: Path) -> Callable[[], object]:
    """Takes the folder away. Returns a function that brings it back."""
    folder, away = tmp_path / "blobs", tmp_path / "away"
    folder.rename(away)
    return partial(away.rename, folder)


async def test_missing_folder_is_unavailable(
    store: FileBlobStore, missing: Callable[[], object]
) -> None:
    for call in (store.exists(NAME), store.get(NAME), store.delete(NAME)):
        with pytest.raises(Unavailable):
            await call
    missing()
    assert await store.get(NAME) == b"an image"


@pytest.mark.parametrize("method", ["exists", "get", "delete"])
async def test_folder_that_comes_back_before_its_check_has_the_blob(
    store: FileBlobStore,
    missing: Callable[[], object],
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise, a record would end as `image_missing`, and a deletion would leave the bytes."""
    check = blobs._check_exists

    def come_back(root: Path) -> None:
        if not root.exists():
            missing()
        check(root)

    monkeypatch.setattr(blobs, "_check_exists", come_back)
    assert await getattr(store, method)(NAME)
    assert await store.exists(NAME) is (method != "delete")
