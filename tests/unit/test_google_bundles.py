"""Bundles out of a bucket: the cache and Google's client, against a scripted Cloud Storage.

What the storage emulator cannot do is done here: refusals, downloads that break off or never end,
and counting what was asked for. `tests/contract/test_bundles.py` has the emulator.
"""

import asyncio
import random
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.backends.bundles import Bundles, open_bundles
from core.bundles import cache
from core.bundles.bundle import Bundle, read_bundle, verify_bundle, write_sums
from core.errors import BundleError, BundleUnavailable
from core.settings import Settings
from tests.support.bundles import write_colour_bundle
from tests.support.scripted_storage import URI, WEIGHTS, ScriptedStorage, scripted_storage

SMALL = ["SHA256SUMS", "model.json", "labels.txt"]


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[ScriptedStorage]:
    async with scripted_storage(write_colour_bundle(tmp_path / "bundle")) as cloud:
        yield cloud


@pytest.fixture
def settings(tmp_path: Path, cloud: ScriptedStorage) -> Settings:
    return Settings(
        _env_file=None,
        data_dir=tmp_path / "data",
        storage_emulator_host=cloud.url,
        model_uri=URI,
    )


@pytest.fixture
async def bundles(settings: Settings) -> AsyncIterator[Bundles]:
    opened = open_bundles(settings, settings.model_uris)
    yield opened
    opened.close()


async def manifest(bundles: Bundles, uri: str = URI) -> Bundle:
    return await asyncio.to_thread(bundles.manifest, uri)


async def whole(bundles: Bundles) -> Bundle:
    bundle = await manifest(bundles)
    await asyncio.to_thread(bundles.weights, URI, bundle)
    return bundle


def files(settings: Settings) -> set[str]:
    """The cache's files, less the lock."""
    found = {path.name for path in settings.model_cache.rglob("*") if path.is_file()}
    return found - {cache.LOCK}


# --- What is fetched, and what is not. ------------------------------------------------------------


async def test_the_manifest_comes_without_the_weights(
    bundles: Bundles, cloud: ScriptedStorage, settings: Settings
) -> None:
    bundle = await manifest(bundles)
    original = read_bundle(cloud.bundle)
    assert (bundle.identity, bundle.labels) == (original.identity, original.labels)
    assert bundle.manifest == original.manifest
    assert cloud.asked == SMALL
    assert files(settings) == set(SMALL)
    assert bundle.folder.parent == settings.data_dir.absolute() / "model-cache"


async def test_the_weights_come_when_they_are_wanted(
    bundles: Bundles, cloud: ScriptedStorage, settings: Settings
) -> None:
    bundle = await whole(bundles)
    verify_bundle(bundle)
    assert cloud.asked == [*SMALL, WEIGHTS]
    assert files(settings) == {*SMALL, WEIGHTS}
    assert (bundle.folder / WEIGHTS).read_bytes() == (cloud.bundle / WEIGHTS).read_bytes()


async def test_the_next_process_fetches_only_the_sums(
    bundles: Bundles, cloud: ScriptedStorage, settings: Settings
) -> None:
    await whole(bundles)
    cloud.asked.clear()
    other = open_bundles(settings, settings.model_uris)
    verify_bundle(await whole(other))
    other.close()
    assert cloud.asked == ["SHA256SUMS"]


@pytest.mark.parametrize("name", ["model.json", "labels.txt", WEIGHTS])
async def test_what_was_damaged_in_the_cache_is_fetched_again(
    bundles: Bundles, cloud: ScriptedStorage, name: str
) -> None:
    path = (await whole(bundles)).folder / name
    path.write_bytes(path.read_bytes()[:-1])
    cloud.asked.clear()
    verify_bundle(await whole(bundles))
    assert cloud.asked == ["SHA256SUMS", name]


async def test_another_bundle_in_the_same_place_is_another_folder(
    bundles: Bundles, cloud: ScriptedStorage
) -> None:
    first = await whole(bundles)
    write_colour_bundle(cloud.bundle, sharpness=20)
    second = await whole(bundles)
    assert first.identity != second.identity
    verify_bundle(first)
    verify_bundle(second)


async def test_the_folders_are_their_owners_alone(bundles: Bundles, settings: Settings) -> None:
    """The first to write into DATA_DIR makes it, and keys and images come into it later."""
    bundle = await manifest(bundles)
    for folder in (settings.data_dir, settings.model_cache, bundle.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_a_path_is_read_where_it_is(bundles: Bundles, cloud: ScriptedStorage) -> None:
    path = str(cloud.bundle)
    bundle = await manifest(bundles, path)
    assert bundle.folder == cloud.bundle
    await asyncio.to_thread(bundles.weights, path, bundle)
    assert cloud.asked == []


# --- Bundles that are wrong. ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.json", "labels.txt", WEIGHTS])
async def test_what_differs_from_the_sums_is_refused_and_not_kept(
    bundles: Bundles, cloud: ScriptedStorage, settings: Settings, name: str
) -> None:
    path = cloud.bundle / name
    path.write_bytes(path.read_bytes() + b"\n")
    for _ in range(2):
        with pytest.raises(BundleError, match=f"{URI}: {name} differs from SHA256SUMS") as refused:
            await whole(bundles)
        assert not isinstance(refused.value, BundleUnavailable)
        assert name not in files(settings)
        assert cache.PART not in files(settings)
    # Mended in the bucket, it is taken.
    path.write_bytes(path.read_bytes()[:-1])
    verify_bundle(await whole(bundles))


async def test_without_sums_it_is_refused(bundles: Bundles, cloud: ScriptedStorage) -> None:
    (cloud.bundle / "SHA256SUMS").unlink()
    with pytest.raises(BundleError, match=f"{URI} has no SHA256SUMS"):
        await manifest(bundles)


@pytest.mark.parametrize("sums", [b"", b"nonsense", b"\xff\xfe", b"ab  model.onnx\n"])
async def test_sums_that_are_none_are_refused(
    bundles: Bundles, cloud: ScriptedStorage, sums: bytes
) -> None:
    (cloud.bundle / "SHA256SUMS").write_bytes(sums)
    with pytest.raises(BundleError, match=f"{URI}/SHA256SUMS lacks model.onnx"):
        await manifest(bundles)


async def test_a_digest_is_never_a_path(
    bundles: Bundles, cloud: ScriptedStorage, tmp_path: Path
) -> None:
    evil = "../" * 21 + "x"
    (cloud.bundle / "SHA256SUMS").write_text(
        "".join(f"{evil}  {name}\n" for name in (WEIGHTS, "model.json", "labels.txt"))
    )
    with pytest.raises(BundleError, match="lacks"):
        await manifest(bundles)


async def test_a_manifest_that_is_none_names_the_uri(
    bundles: Bundles, cloud: ScriptedStorage
) -> None:
    (cloud.bundle / "model.json").write_text("{}")
    write_sums(cloud.bundle)
    with pytest.raises(BundleError, match=URI):
        await manifest(bundles)


@pytest.mark.parametrize("name", SMALL)
async def test_what_should_be_small_is_not_read_beyond_its_bound(
    bundles: Bundles, cloud: ScriptedStorage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SMALL_FILE_BYTES", 2000)
    for size in (2000, 2001):
        (cloud.bundle / name).write_bytes(bytes(size))
        if name != "SHA256SUMS":
            write_sums(cloud.bundle)
        said = ""
        try:
            await manifest(bundles)
        except BundleError as error:
            said = error.detail
        assert (said == f"{URI}/{name} has more than 2000 bytes.") == (size > 2000), said


# --- Bundles that cannot be read for now. ---------------------------------------------------------


async def unavailable(bundles: Bundles, uri: str = URI) -> str:
    with pytest.raises(BundleUnavailable) as refused:
        await manifest(bundles, uri)
    return refused.value.detail


async def test_what_is_missing_is_named(bundles: Bundles, cloud: ScriptedStorage) -> None:
    for uri, said in (
        ("gs://nobody/x", "gs://nobody/x does not exist: there is no bucket nobody."),
        (
            "gs://models/x",
            "gs://models/x is empty: the bucket has no object whose name starts like that.",
        ),
    ):
        assert await unavailable(bundles, uri) == said
    (cloud.bundle / "labels.txt").unlink()
    assert "has no labels.txt" in await unavailable(bundles)


async def test_what_may_not_be_read_names_the_role(
    bundles: Bundles, cloud: ScriptedStorage
) -> None:
    cloud.status["model.json"] = 403
    said = await unavailable(bundles)
    assert f"{URI}/model.json" in said
    assert "roles/storage.objectViewer on the bucket models" in said


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
async def test_a_storage_that_fails_is_named(
    bundles: Bundles, cloud: ScriptedStorage, status: int
) -> None:
    cloud.status["SHA256SUMS"] = status
    assert await unavailable(bundles) == (
        f"{URI}/SHA256SUMS cannot be fetched. The model storage does not answer."
    )
    cloud.status.clear()
    verify_bundle(await whole(bundles))


async def test_without_credentials_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BACKEND=embedded without STORAGE_EMULATOR_HOST means Google itself."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    opened = open_bundles(Settings(_env_file=None, data_dir=tmp_path, model_uri=URI), (URI,))
    said = await unavailable(opened)
    opened.close()
    assert URI in said
    assert "There are no Google credentials" in said


async def test_a_cache_that_cannot_be_written_is_named(settings: Settings, tmp_path: Path) -> None:
    settings.data_dir.mkdir(exist_ok=True)
    settings.model_cache.write_text("no folder")
    opened = open_bundles(settings, settings.model_uris)
    with pytest.raises(BundleError, match=r"model-cache.*cannot be used: File exists"):
        await manifest(opened)
    opened.close()


async def test_a_full_disk_is_no_fault_of_the_storage(
    bundles: Bundles, cloud: ScriptedStorage
) -> None:
    give_weights(cloud, 100_000)
    bundle = await manifest(bundles)
    (bundle.folder / cache.PART).symlink_to("/dev/full")
    with pytest.raises(BundleError, match="No space left on device") as full:
        await asyncio.to_thread(bundles.weights, URI, bundle)
    assert not isinstance(full.value, BundleUnavailable)
    verify_bundle(await whole(bundles))


def give_weights(cloud: ScriptedStorage, size: int) -> None:
    """So many bytes, of which no two stretches are alike; no model of anything."""
    (cloud.bundle / WEIGHTS).write_bytes(random.Random(1).randbytes(size))
    write_sums(cloud.bundle)


# --- Downloads that break off. --------------------------------------------------------------------


async def test_a_download_that_breaks_off_goes_on_where_it_was(
    bundles: Bundles, cloud: ScriptedStorage
) -> None:
    """For longer than Google's client would go on trying."""
    give_weights(cloud, 8000)
    bundle = await manifest(bundles)
    cloud.breaks_after = 400
    cloud.asked.clear()
    await asyncio.to_thread(bundles.weights, URI, bundle)
    verify_bundle(bundle)
    assert cloud.asked == [WEIGHTS, *(f"{WEIGHTS}@{n}" for n in range(400, 8000, 400))]


async def test_one_that_brings_nothing_is_given_up(
    bundles: Bundles, cloud: ScriptedStorage, settings: Settings
) -> None:
    bundle = await manifest(bundles)
    cloud.status[WEIGHTS] = 503
    with pytest.raises(BundleUnavailable, match=f"{URI}/{WEIGHTS} cannot be fetched"):
        await asyncio.to_thread(bundles.weights, URI, bundle)
    assert files(settings) == set(SMALL)
    cloud.status.clear()
    await asyncio.to_thread(bundles.weights, URI, bundle)
    verify_bundle(bundle)


async def test_what_a_killed_process_left_is_no_model(
    bundles: Bundles, cloud: ScriptedStorage
) -> None:
    bundle = await manifest(bundles)
    data = (cloud.bundle / WEIGHTS).read_bytes()
    (bundle.folder / cache.PART).write_bytes(b"x" * len(data) * 2)
    await asyncio.to_thread(bundles.weights, URI, bundle)
    verify_bundle(bundle)
    assert not (bundle.folder / cache.PART).exists()


async def test_a_download_that_takes_too_long_ends(
    bundles: Bundles, cloud: ScriptedStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = await manifest(bundles)
    monkeypatch.setattr(cache, "FETCH_SECONDS", 0.5)
    cloud.endless = True
    with pytest.raises(BundleUnavailable, match=f"{URI} did not come within 0.5 s"):
        await asyncio.to_thread(bundles.weights, URI, bundle)
    assert files(settings) == set(SMALL)


async def test_a_stop_ends_a_download(
    bundles: Bundles, cloud: ScriptedStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And waits until what came of it is cleared away, as takes a while with gigabytes."""
    bundle = await manifest(bundles)
    unlink = Path.unlink

    def slowly(path: Path, missing_ok: bool = False) -> None:
        time.sleep(0.3)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", slowly)
    cloud.endless = True
    fetching = asyncio.create_task(asyncio.to_thread(bundles.weights, URI, bundle))
    await cloud.reading.wait()
    await asyncio.to_thread(bundles.close)
    # By now: the process may end before the thread does.
    assert files(settings) == set(SMALL)
    with pytest.raises(BundleUnavailable, match="the process stops"):
        await fetching


# --- Several at once. -----------------------------------------------------------------------------


async def test_of_many_threads_one_fetches(settings: Settings, cloud: ScriptedStorage) -> None:
    opened = [open_bundles(settings, settings.model_uris) for _ in range(6)]
    cloud.go_on.clear()
    asking = asyncio.gather(*(whole(each) for each in opened))
    await cloud.reading.wait()
    cloud.go_on.set()
    for bundle in await asking:
        verify_bundle(bundle)
    assert cloud.asked.count(WEIGHTS) == 1
    for each in opened:
        each.close()
