"""Bundles in buckets of the storage emulator, which runs on every machine."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.backends.bundles import Bundles, open_bundles
from core.bundles.bundle import Bundle, read_bundle, verify_bundle
from core.errors import BundleError, BundleUnavailable
from core.settings import DEFAULT_BUNDLE, Settings
from tests.support.buckets import fill_bundle, remove

FOLDER = "bundles/a b?#ä"


@pytest.fixture
def bucket() -> str:
    return f"models-{secrets.token_hex(4)}"


@pytest.fixture
def uri(bucket: str) -> str:
    return f"gs://{bucket}/{FOLDER}"


@pytest.fixture
def settings(storage_url: str, tmp_path: Path, uri: str) -> Settings:
    return Settings(
        _env_file=None,
        data_dir=tmp_path / "data",
        storage_emulator_host=storage_url,
        model_uri=uri,
    )


@pytest.fixture
async def bundles(settings: Settings) -> AsyncIterator[Bundles]:
    opened = open_bundles(settings, settings.model_uris)
    yield opened
    opened.close()


async def test_bundle_is_downloaded_completely(
    bundles: Bundles, settings: Settings, bucket: str, uri: str
) -> None:
    """The default bundle: its weights are larger than one request."""
    assert await fill_bundle(settings, bucket, FOLDER, DEFAULT_BUNDLE) == uri
    bundle = await asyncio.to_thread(bundles.manifest, uri)
    assert bundle.identity == read_bundle(DEFAULT_BUNDLE).identity
    assert not (bundle.folder / "model.onnx").exists()
    await asyncio.to_thread(bundles.weights, uri, bundle)
    assert isinstance(bundle, Bundle)
    verify_bundle(bundle)
    assert (bundle.folder / "model.onnx").stat().st_size > 5_000_000


async def test_missing_part_is_named(
    bundles: Bundles, settings: Settings, bucket: str, uri: str, colour_bundle: Path
) -> None:
    async def said() -> str:
        with pytest.raises(BundleUnavailable) as missing:
            bundle = await asyncio.to_thread(bundles.manifest, uri)
            await asyncio.to_thread(bundles.weights, uri, bundle)
        return missing.value.detail

    assert await said() == f"{uri} does not exist: there is no bucket {bucket}."
    await fill_bundle(settings, bucket, "bundles/another", colour_bundle)
    assert await said() == f"{uri} is empty: the bucket has no object whose name starts like that."
    for name in ("SHA256SUMS", "model.json", "labels.txt", "model.onnx"):
        await fill_bundle(settings, bucket, FOLDER, colour_bundle)
        await remove(settings, bucket, f"{FOLDER}/{name}")
        assert await said() == f"{uri} has no {name}. A bundle in a bucket must have it."
        await asyncio.to_thread(_forget, settings.model_cache)


async def test_bundle_with_other_checksums_is_refused(
    bundles: Bundles, settings: Settings, bucket: str, uri: str, colour_bundle: Path
) -> None:
    await fill_bundle(settings, bucket, FOLDER, DEFAULT_BUNDLE, without=["SHA256SUMS"])
    await fill_bundle(
        settings, bucket, FOLDER, colour_bundle, without=["model.json", "labels.txt", "model.onnx"]
    )
    with pytest.raises(BundleError, match=r"model\.json differs from SHA256SUMS"):
        await asyncio.to_thread(bundles.manifest, uri)


def _forget(cache: Path) -> None:
    for path in cache.rglob("*"):
        if path.is_file():
            path.unlink()
