"""Bundles from a bucket: the cache and Google's client against a scripted Cloud Storage.

What the storage emulator cannot do is done here: refusals, downloads that break off or never end,
and counting what was asked for. `tests/contract/test_bundles.py` has the emulator.
"""

import asyncio
import random
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.models.catalogue import ModelRef
from app.models.default_bundle import read_model
from core.backends.bundles import Bundles, open_bundles
from core.backends.google import bundles as bundle_objects
from core.backends.google import objects
from core.backends.google.blobs import RETRY
from core.bundles import cache
from core.bundles.bundle import Bundle, read_bundle, read_card, verify_bundle, write_sums
from core.errors import BundleError, BundleUnavailable
from core.settings import Settings
from tests.support.bundles import write_colour_bundle
from tests.support.scripted_storage import URI, WEIGHTS, ScriptedStorage, scripted_storage
from tests.support.settings import isolated_settings

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
    bundle = await asyncio.to_thread(bundles.manifest, uri)
    assert isinstance(bundle, Bundle)
    return bundle


async def complete(bundles: Bundles) -> Bundle:
    bundle = await manifest(bundles)
    await asyncio.to_thread(bundles.weights, URI, bundle)
    return bundle


def files(settings: Settings) -> set[str]:
    """The names of the cache's files without the lock."""
    found = {path.name for path in settings.model_cache.rglob("*") if path.is_file()}
    return found - {cache.LOCK}


# --- Which files are fetched. ---------------------------------------------------------------------


async def test_the_manifest_is_fetched_without_the_weights(
    bundles: Bundles, cloud: ScriptedStorage, settings: Settings
) -> None:
    bundle = await manifest(bundles)
    original = read_bundle(cloud.bundle)
    assert (bundle.identity, bundle.labels) == (original.identity, original.labels)
    assert bundle.manifest == original.manifest
    assert cloud.asked == SMALL
    assert files(settings) == set(SMALL)
    assert bundle.folder.parent == settings.data_dir.absolute() / "model-cache"


async def test_the_card_is_fetched_at_each_start(bundles: Bundles, cloud: ScriptedStorage) -> None:
    """The card of a bundle may change without its identity: the next start shows the new one."""
    bundle = await manifest(bundles)
    for text in ("# Colours", "# Six colours"):
        (cloud.bundle / "MODEL_CARD.md").write_text(text)
        await asyncio.to_thread(bundles.card, URI, bundle)
        assert read_card(bundle.folder) == text
    assert (await manifest(bundles)).identity == bundle.identity


@pytest.mark.parametrize("status", [None, 403], ids=["missing", "forbidden"])
async def test_a_bundle_is_served_without_a_card_that_cannot_be_read(
    bundles: Bundles, cloud: ScriptedStorage, status: int | None
) -> None:
    if status:
        cloud.status["MODEL_CARD.md"] = status
    bundle = await manifest(bundles)
    await asyncio.to_thread(bundles.card, URI, bundle)
    assert read_card(bundle.folder) == ""
    verify_bundle(await complete(bundles))


async def test_the_model_of_a_bucket_is_shown_with_its_card(
    cloud: ScriptedStorage, settings: Settings
) -> None:
    (cloud.bundle / "MODEL_CARD.md").write_text("# Colours")
    bundle = await asyncio.to_thread(read_model, settings)
    assert ModelRef.of_bundle(bundle).card == "# Colours"


async def test_the_weights_are_fetched_on_demand(
    bundles: Bundles, cloud: ScriptedStorage, settings: Settings
) -> None:
    bundle = await complete(bundles)
    verify_bundle(bundle)
    assert cloud.asked == [*SMALL, WEIGHTS]
    assert files(settings) == {*SMALL, WEIGHTS}
    assert (bundle.folder / WEIGHTS).read_bytes() == (cloud.bundle / WEIGHTS).read_bytes()


async def test_the_next_process_fetches_only_the_sums(
    bundles: Bundles, cloud: ScriptedStorage, settings: Settings
) -> None:
    await complete(bundles)
    cloud.asked.clear()
    other = open_bundles(settings, settings.model_uris)
    verify_bundle(await complete(other))
    other.close()
    assert cloud.asked == ["SHA256SUMS"]


@pytest.mark.parametrize("name", ["model.json", "labels.txt", WEIGHTS])
async def test_a_damaged_file_of_the_cache_is_fetched_again(
    bundles: Bundles, cloud: ScriptedStorage, name: str
) -> None:
    path = (await complete(bundles)).folder / name
    path.write_bytes(path.read_bytes()[:-1])
    cloud.asked.clear()
    verify_bundle(await complete(bundles))
    assert cloud.asked == ["SHA256SUMS", name]


async def test_another_bundle_at_the_same_uri_has_another_folder(
    bundles: Bundles, cloud: ScriptedStorage
) -> None:
    first = await complete(bundles)
    write_colour_bundle(cloud.bundle, sharpness=20)
    second = await complete(bundles)
    assert first.identity != second.identity
    verify_bundle(first)
    verify_bundle(second)


async def test_the_folders_are_private(bundles: Bundles, settings: Settings) -> None:
    """The cache may create DATA_DIR, which later contains keys and images."""
    bundle = await manifest(bundles)
    for folder in (settings.data_dir, settings.model_cache, bundle.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_a_local_path_is_read_in_place(bundles: Bundles, cloud: ScriptedStorage) -> None:
    path = str(cloud.bundle)
    bundle = await manifest(bundles, path)
    assert bundle.folder == cloud.bundle
    await asyncio.to_thread(bundles.weights, path, bundle)
    assert cloud.asked == []


# --- Bundles that are wrong. ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.json", "labels.txt", WEIGHTS])
async def test_a_file_that_differs_from_the_sums_is_refused_and_not_kept(
    bundles: Bundles, cloud: ScriptedStorage, settings: Settings, name: str
) -> None:
    path = cloud.bundle / name
    path.write_bytes(path.read_bytes() + b"\n")
    for _ in range(2):
        with pytest.raises(BundleError, match=f"{URI}: {name} differs from SHA256SUMS") as refused:
            await complete(bundles)
        assert not isinstance(refused.value, BundleUnavailable)
        assert name not in files(settings)
        assert cache.PART not in files(settings)
    # Once the bucket has the right file, it is accepted.
    path.write_bytes(path.read_bytes()[:-1])
    verify_bundle(await complete(bundles))


async def test_a_bundle_without_sums_is_refused(bundles: Bundles, cloud: ScriptedStorage) -> None:
    (cloud.bundle / "SHA256SUMS").unlink()
    with pytest.raises(BundleError, match=f"{URI} has no SHA256SUMS"):
        await manifest(bundles)


@pytest.mark.parametrize("sums", [b"", b"nonsense", b"\xff\xfe", b"ab  model.onnx\n"])
async def test_invalid_sums_are_refused(
    bundles: Bundles, cloud: ScriptedStorage, sums: bytes
) -> None:
    (cloud.bundle / "SHA256SUMS").write_bytes(sums)
    with pytest.raises(BundleError, match=f"{URI}/SHA256SUMS lacks model.onnx"):
        await manifest(bundles)


async def test_a_digest_is_never_used_as_a_path(
    bundles: Bundles, cloud: ScriptedStorage, tmp_path: Path
) -> None:
    evil = "../" * 21 + "x"
    (cloud.bundle / "SHA256SUMS").write_text(
        "".join(f"{evil}  {name}\n" for name in (WEIGHTS, "model.json", "labels.txt"))
    )
    with pytest.raises(BundleError, match="lacks"):
        await manifest(bundles)


async def test_the_error_of_an_invalid_manifest_names_the_uri(
    bundles: Bundles, cloud: ScriptedStorage
) -> None:
    (cloud.bundle / "model.json").write_text("{}")
    write_sums(cloud.bundle)
    with pytest.raises(BundleError, match=URI):
        await manifest(bundles)


@pytest.mark.parametrize("name", SMALL)
async def test_small_files_are_read_up_to_a_limit(
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


# --- Bundles that are unavailable. ----------------------------------------------------------------


async def unavailable(bundles: Bundles, uri: str = URI) -> str:
    with pytest.raises(BundleUnavailable) as refused:
        await manifest(bundles, uri)
    return refused.value.detail


async def test_the_error_names_what_is_missing(bundles: Bundles, cloud: ScriptedStorage) -> None:
    for uri, said in (
        ("gs://absent/x", "gs://absent/x does not exist: there is no bucket absent."),
        (
            "gs://models/x",
            "gs://models/x is empty: the bucket has no object whose name starts like that.",
        ),
    ):
        assert await unavailable(bundles, uri) == said
    (cloud.bundle / "labels.txt").unlink()
    assert "has no labels.txt" in await unavailable(bundles)


async def test_the_error_of_a_forbidden_bucket_names_the_role(
    bundles: Bundles, cloud: ScriptedStorage
) -> None:
    cloud.status["model.json"] = 403
    said = await unavailable(bundles)
    assert f"{URI}/model.json" in said
    assert "roles/storage.objectViewer on the bucket models" in said


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
async def test_the_error_names_a_failing_storage(
    bundles: Bundles, cloud: ScriptedStorage, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.status["SHA256SUMS"] = status
    with monkeypatch.context() as patch:
        patch.setattr(objects, "RETRY", RETRY.with_timeout(0.5))
        assert await unavailable(bundles) == (
            f"{URI}/SHA256SUMS cannot be fetched. The model storage does not answer."
        )
    cloud.status.clear()
    verify_bundle(await complete(bundles))


async def test_the_error_names_missing_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BACKEND=embedded without STORAGE_EMULATOR_HOST uses Google Cloud."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    opened = open_bundles(isolated_settings(data_dir=tmp_path, model_uri=URI), (URI,))
    said = await unavailable(opened)
    opened.close()
    assert URI in said
    assert "There are no Google credentials" in said


async def test_the_error_names_a_cache_that_cannot_be_written(
    settings: Settings, tmp_path: Path
) -> None:
    settings.data_dir.mkdir(exist_ok=True)
    settings.model_cache.write_text("no folder")
    opened = open_bundles(settings, settings.model_uris)
    with pytest.raises(BundleError, match=r"model-cache.*cannot be used: File exists"):
        await manifest(opened)
    opened.close()


async def test_a_full_disk_is_not_reported_as_unavailable_storage(
    bundles: Bundles, cloud: ScriptedStorage
) -> None:
    set_weights(cloud, 100_000)
    bundle = await manifest(bundles)
    (bundle.folder / cache.PART).symlink_to("/dev/full")
    with pytest.raises(BundleError, match="No space left on device") as full:
        await asyncio.to_thread(bundles.weights, URI, bundle)
    assert not isinstance(full.value, BundleUnavailable)
    verify_bundle(await complete(bundles))


def set_weights(cloud: ScriptedStorage, size: int) -> None:
    """Replace the weights by `size` random bytes, which are not a model."""
    (cloud.bundle / WEIGHTS).write_bytes(random.Random(1).randbytes(size))
    write_sums(cloud.bundle)


# --- Interrupted downloads. -----------------------------------------------------------------------


async def test_an_interrupted_download_resumes(
    bundles: Bundles, cloud: ScriptedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It resumes more often than Google's client retries."""
    monkeypatch.setattr(bundle_objects, "RETRY", RETRY.with_delay(0.01, 0.1, 2.0))
    set_weights(cloud, 8000)
    bundle = await manifest(bundles)
    cloud.breaks_after = 400
    cloud.asked.clear()
    await asyncio.to_thread(bundles.weights, URI, bundle)
    verify_bundle(bundle)
    assert cloud.asked == [WEIGHTS, *(f"{WEIGHTS}@{n}" for n in range(400, 8000, 400))]


async def test_a_download_without_progress_fails(
    bundles: Bundles, cloud: ScriptedStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = await manifest(bundles)
    cloud.status[WEIGHTS] = 503
    with (
        monkeypatch.context() as patch,
        pytest.raises(BundleUnavailable, match=f"{URI}/{WEIGHTS} cannot be fetched"),
    ):
        patch.setattr(bundle_objects, "RETRY", RETRY.with_timeout(0.5))
        await asyncio.to_thread(bundles.weights, URI, bundle)
    assert files(settings) == set(SMALL)
    cloud.status.clear()
    await asyncio.to_thread(bundles.weights, URI, bundle)
    verify_bundle(bundle)


async def test_the_temporary_file_of_a_killed_process_is_replaced(
    bundles: Bundles, cloud: ScriptedStorage
) -> None:
    bundle = await manifest(bundles)
    data = (cloud.bundle / WEIGHTS).read_bytes()
    (bundle.folder / cache.PART).write_bytes(b"x" * len(data) * 2)
    await asyncio.to_thread(bundles.weights, URI, bundle)
    verify_bundle(bundle)
    assert not (bundle.folder / cache.PART).exists()


async def test_a_download_ends_at_its_deadline(
    bundles: Bundles, cloud: ScriptedStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = await manifest(bundles)
    monkeypatch.setattr(cache, "FETCH_SECONDS", 0.5)
    cloud.endless = True
    with pytest.raises(BundleUnavailable, match=f"{URI} was not fetched within 0.5 s"):
        await asyncio.to_thread(bundles.weights, URI, bundle)
    assert files(settings) == set(SMALL)


async def test_close_stops_a_download(
    bundles: Bundles, cloud: ScriptedStorage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also waits for the deletion of the temporary file, which takes long for gigabytes."""
    bundle = await manifest(bundles)
    unlink = Path.unlink

    deleting, go_on = threading.Event(), threading.Event()

    def slowly(path: Path, missing_ok: bool = False) -> None:
        deleting.set()
        assert go_on.wait(60)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", slowly)
    cloud.endless = True
    fetching = asyncio.create_task(asyncio.to_thread(bundles.weights, URI, bundle))
    await cloud.reading.wait()
    closing = asyncio.create_task(asyncio.to_thread(bundles.close))
    assert await asyncio.to_thread(deleting.wait, 60)
    for _ in range(20):
        await asyncio.to_thread(int)
    assert not closing.done()
    go_on.set()
    await closing
    # Already now, because the process may end before the thread does.
    assert files(settings) == set(SMALL)
    with pytest.raises(BundleUnavailable, match="the process stops"):
        await fetching


# --- Concurrent use. ------------------------------------------------------------------------------


async def test_one_of_many_threads_fetches(settings: Settings, cloud: ScriptedStorage) -> None:
    opened = [open_bundles(settings, settings.model_uris) for _ in range(6)]
    cloud.go_on.clear()
    asking = asyncio.gather(*(complete(each) for each in opened))
    await cloud.reading.wait()
    cloud.go_on.set()
    for bundle in await asking:
        verify_bundle(bundle)
    assert cloud.asked.count(WEIGHTS) == 1
    for each in opened:
        each.close()
