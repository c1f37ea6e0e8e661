"""The model registry: which models it loads, how often, and how it retries."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from core.backends.bundles import Bundles
from core.bundles.bundle import read_bundle, write_sums
from core.bundles.python_bundle import AnyBundle
from core.errors import BundleError, BundleUnavailable, ModelUnavailable
from tests.support.bundles import write_colour_bundle
from tests.support.classifiers import spawn_thread
from tests.support.loop_errors import loop_errors
from tests.support.scripted_worker import until
from tests.support.worker import settings_in
from worker.inference.model_registry import ModelRegistry, Retries
from worker.inference.pool import ClassifierPool, RemoteClassifier


class Loads:
    """Loads bundles into a classifier pool, and records their names."""

    def __init__(self, pool: ClassifierPool) -> None:
        self.pool = pool
        self.models: list[str] = []

    async def __call__(self, bundle: AnyBundle) -> RemoteClassifier:
        self.models.append(bundle.manifest.name)
        return await self.pool.load(bundle)


@pytest.fixture
async def loads(tmp_path: Path) -> AsyncIterator[Loads]:
    pool = ClassifierPool(settings_in(tmp_path, worker_concurrency=1), spawn_thread)
    await pool.start()
    yield Loads(pool)
    await pool.close()


@pytest.fixture
def bundles(tmp_path: Path) -> list[str]:
    return [str(write_colour_bundle(tmp_path / name, name=name)) for name in ("a", "b", "c")]


def identity(uri: str) -> str:
    return read_bundle(uri).identity


async def test_open_loads_only_the_default_model(bundles: list[str], loads: Loads) -> None:
    registry = ModelRegistry(bundles, Bundles(), 2, loads)
    await registry.open()
    assert loads.models == ["a"]
    assert registry.identities == tuple(map(identity, bundles))
    await registry.check()
    assert loads.models == ["a"]


async def test_concurrent_requests_load_a_model_once(bundles: list[str], loads: Loads) -> None:
    registry = ModelRegistry(bundles, Bundles(), 2, loads)
    await registry.open()
    found = await asyncio.gather(*(registry.classifier(identity(bundles[1])) for _ in range(50)))
    assert loads.models == ["a", "b"]
    assert len({id(classifier) for classifier in found}) == 1


async def test_cancelled_request_does_not_cancel_the_load(bundles: list[str], loads: Loads) -> None:
    registry = ModelRegistry(bundles, Bundles(), 2, loads)
    await registry.open()
    first = asyncio.create_task(registry.classifier(identity(bundles[1])))
    second = asyncio.create_task(registry.classifier(identity(bundles[1])))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).bundle.manifest.name == "b"
    assert loads.models == ["a", "b"]


async def test_failed_load_is_not_reported_after_its_request_was_cancelled(
    bundles: list[str], loads: Loads
) -> None:
    registry = ModelRegistry(bundles, Bundles(), 2, loads)
    await registry.open()
    labels = Path(bundles[1]) / "labels.txt"
    labels.write_text(labels.read_text().upper())
    with loop_errors() as errors:
        first = asyncio.create_task(registry.classifier(identity(bundles[1])))
        await asyncio.sleep(0)
        first.cancel()
        await until(lambda: not registry._loading)
        assert first.cancelled()
        del first  # its traceback refers to the load
    assert errors == []


async def test_least_recently_used_model_is_unloaded(bundles: list[str], loads: Loads) -> None:
    registry = ModelRegistry(bundles, Bundles(), 2, loads)
    await registry.open()
    a, b, c = map(identity, bundles)
    for model in (b, a, c, a, b):
        assert (await registry.classifier(model)).bundle.identity == model
    assert loads.models == ["a", "b", "c", "b"]


async def test_unknown_model_is_unavailable(bundles: list[str], loads: Loads) -> None:
    registry = ModelRegistry(bundles, Bundles(), 2, loads)
    await registry.open()
    with pytest.raises(ModelUnavailable, match="unknown@0123456789ab"):
        await registry.classifier("unknown@0123456789ab")


async def test_bad_bundle_does_not_affect_the_others(bundles: list[str], loads: Loads) -> None:
    now = 0.0
    good = identity(bundles[1])
    bad = Path(bundles[0])
    whole = (bad / "labels.txt").read_text()
    (bad / "labels.txt").write_text(whole.upper())
    registry = ModelRegistry(bundles, Bundles(), 2, loads, monotonic=lambda: now)
    await registry.open()
    with pytest.raises(ModelUnavailable):
        await registry.check()
    assert (await registry.classifier(good)).bundle.manifest.name == "b"
    assert loads.models == ["a", "b"], "a failed load is not repeated for every message"
    # After the pause, the registry loads the repaired bundle.
    (bad / "labels.txt").write_text(whole)
    now += Retries().load
    await registry.check()
    await registry.close()


async def test_error_names_a_missing_bundle(
    tmp_path: Path, bundles: list[str], loads: Loads
) -> None:
    registry = ModelRegistry([str(tmp_path / "absent"), *bundles], Bundles(), 2, loads)
    await registry.open()
    with pytest.raises(BundleError, match="absent"):
        await registry.check()
    assert len(registry.identities) == 3
    await registry.close()


# --- Retries --------------------------------------------------------------------------------------


SHORT_PAUSES = Retries(read=0.02, max_read=0.02, load=0.01, max_load=0.01)


async def ready(registry: ModelRegistry) -> None:
    """Wait until the default model is usable."""

    async def usable() -> bool:
        with suppress(BundleError, ModelUnavailable):
            await registry.check()
            return True
        return False

    await until(usable)


def appear(folder: Path) -> None:
    """Write a bundle and move it into place, so that no reader sees half of it."""
    write_colour_bundle(folder.with_suffix(".new"), folder.name).rename(folder)


async def test_missing_bundle_is_found_when_it_appears(tmp_path: Path, loads: Loads) -> None:
    late, other = tmp_path / "late", tmp_path / "other"
    registry = ModelRegistry([str(late), str(other)], Bundles(), 2, loads, retries=SHORT_PAUSES)
    await registry.open()
    assert list(registry.identities) == []
    await asyncio.to_thread(appear, other)
    await until(lambda: registry.identities != ())
    # The registry finds and loads it without any request.
    await asyncio.to_thread(appear, late)
    await until(lambda: loads.models != [])
    await ready(registry)
    assert loads.models == ["late"]
    assert registry.identities == (identity(str(late)), identity(str(other)))
    await registry.close()


async def test_default_bundle_that_was_repaired_has_another_identity(
    bundles: list[str], loads: Loads
) -> None:
    """For example, the checksums were uploaded after the other files."""
    labels = Path(bundles[0]) / "labels.txt"
    labels.write_text(labels.read_text().upper())
    before = identity(bundles[0])
    registry = ModelRegistry(bundles, Bundles(), 2, loads, retries=SHORT_PAUSES)
    await registry.open()
    assert registry.identities[0] == before
    await asyncio.to_thread(write_sums, Path(bundles[0]))
    await ready(registry)
    assert registry.identities[0] == identity(bundles[0]) != before
    await registry.close()


async def test_readable_bundles_are_not_read_again(bundles: list[str], loads: Loads) -> None:
    read: list[str] = []

    class Counting(Bundles):
        def manifest(self, uri: str) -> AnyBundle:
            read.append(uri)
            return super().manifest(uri)

    away = await asyncio.to_thread(shutil.move, bundles[1], f"{bundles[1]}-away")
    registry = ModelRegistry(bundles, Counting(), 2, loads, retries=SHORT_PAUSES)
    await registry.open()
    assert read == bundles
    await until(lambda: len(read) >= 6)
    # The readable bundles are not read again, because they could have changed.
    assert set(read[3:]) == {bundles[1]}
    await asyncio.to_thread(shutil.move, away, bundles[1])
    await until(lambda: len(registry.identities) >= 3)
    seen = len(read)
    assert registry._retrying is not None
    async with asyncio.timeout(30):
        await registry._retrying
    assert len(read) == seen
    await registry.close()


async def test_failed_load_is_repeated_at_growing_intervals(
    bundles: list[str], loads: Loads
) -> None:
    """Each load may download gigabytes."""
    now = 0.0
    labels = Path(bundles[0]) / "labels.txt"
    labels.write_text(labels.read_text().upper())
    registry = ModelRegistry(bundles[:1], Bundles(), 2, loads, monotonic=lambda: now)
    await registry.open()
    await registry.close()
    moments = [now]
    while now < 1500:
        now += 1
        tries = len(loads.models)
        with pytest.raises(ModelUnavailable):
            await registry.check()
        if len(loads.models) > tries:
            moments.append(now)
    pauses = [later - earlier for earlier, later in pairwise(moments)]
    assert pauses == [10, 20, 40, 80, 160, 300, 300, 300]


async def test_unavailable_storage_is_tried_at_the_shortest_interval(bundles: list[str]) -> None:
    """A try costs nothing, and the first one after the outage succeeds."""
    now, tries = 0.0, []

    async def load(bundle: AnyBundle) -> RemoteClassifier:
        tries.append(now)
        raise BundleUnavailable("The storage does not answer.")

    registry = ModelRegistry(bundles[:1], Bundles(), 1, load, monotonic=lambda: now)
    await registry.open()
    await registry.close()
    while now < 50:
        now += 1
        with pytest.raises(ModelUnavailable):
            await registry.check()
    assert tries == [0, 10, 20, 30, 40, 50]


async def test_success_resets_the_interval_of_failed_loads(
    bundles: list[str], loads: Loads
) -> None:
    now, broken = 0.0, True
    tries = 0

    async def load(bundle: AnyBundle) -> RemoteClassifier:
        nonlocal tries
        if bundle.manifest.name == "b":
            tries += 1
            if broken:
                raise BundleError("The weights are damaged.")
        return await loads(bundle)

    registry = ModelRegistry(bundles[:2], Bundles(), 1, load, monotonic=lambda: now)
    await registry.open()
    a, b = map(identity, bundles[:2])
    for moment in (0, 10):
        now = moment
        with pytest.raises(ModelUnavailable):
            await registry.classifier(b)
    now, broken = 30, False
    await registry.classifier(b)
    await registry.classifier(a)  # unloads b
    broken = True
    for moment, expected in ((30, 4), (39, 4), (40, 5)):
        now = moment
        with pytest.raises(ModelUnavailable):
            await registry.classifier(b)
        assert tries == expected, moment
    await registry.close()


async def test_closed_registry_does_not_retry(tmp_path: Path, loads: Loads) -> None:
    registry = ModelRegistry([str(tmp_path / "absent")], Bundles(), 2, loads, retries=SHORT_PAUSES)
    await registry.open()
    others = asyncio.all_tasks()
    await registry.close()
    assert len(others - asyncio.all_tasks()) == 1
