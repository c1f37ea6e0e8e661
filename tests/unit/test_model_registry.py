"""The registry: what is loaded when, how often, and what happens when it cannot be."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from core.backends.bundles import Bundles
from core.bundles.bundle import Bundle, read_bundle, write_sums
from core.errors import BundleError, ModelUnavailable
from tests.support.bundles import write_colour_bundle
from tests.support.classifiers import spawn_thread
from tests.support.scripted_worker import until
from tests.support.worker import settings_in
from worker.inference.model_registry import ModelRegistry, Retries
from worker.inference.pool import ClassifierPool, RemoteClassifier


class Loads:
    """Loads real bundles in a real process, and notes which."""

    def __init__(self, pool: ClassifierPool) -> None:
        self.pool = pool
        self.models: list[str] = []

    async def __call__(self, bundle: Bundle) -> RemoteClassifier:
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


async def test_only_the_default_is_loaded_at_the_start(bundles: list[str], loads: Loads) -> None:
    registry = ModelRegistry(bundles, Bundles(), 2, loads)
    await registry.open()
    assert loads.models == ["a"]
    assert registry.identities == tuple(map(identity, bundles))
    await registry.check()
    assert loads.models == ["a"]


async def test_many_requests_load_a_model_once(bundles: list[str], loads: Loads) -> None:
    registry = ModelRegistry(bundles, Bundles(), 2, loads)
    await registry.open()
    found = await asyncio.gather(*(registry.classifier(identity(bundles[1])) for _ in range(50)))
    assert loads.models == ["a", "b"]
    assert len({id(classifier) for classifier in found}) == 1


async def test_one_that_goes_away_does_not_take_the_load_from_the_others(
    bundles: list[str], loads: Loads
) -> None:
    registry = ModelRegistry(bundles, Bundles(), 2, loads)
    await registry.open()
    first = asyncio.create_task(registry.classifier(identity(bundles[1])))
    second = asyncio.create_task(registry.classifier(identity(bundles[1])))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).bundle.manifest.name == "b"
    assert loads.models == ["a", "b"]


async def test_the_least_recently_used_goes(bundles: list[str], loads: Loads) -> None:
    registry = ModelRegistry(bundles, Bundles(), 2, loads)
    await registry.open()
    a, b, c = map(identity, bundles)
    for model in (b, a, c, a, b):
        assert (await registry.classifier(model)).bundle.identity == model
    assert loads.models == ["a", "b", "c", "b"]


async def test_an_unknown_model_is_unavailable(bundles: list[str], loads: Loads) -> None:
    registry = ModelRegistry(bundles, Bundles(), 2, loads)
    await registry.open()
    with pytest.raises(ModelUnavailable, match="nobody@0123456789ab"):
        await registry.classifier("nobody@0123456789ab")


async def test_a_bad_bundle_is_reported_and_the_others_work(
    bundles: list[str], loads: Loads
) -> None:
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
    # Once the time to try again has come, a repaired bundle is taken.
    (bad / "labels.txt").write_text(whole)
    now += Retries().load
    await registry.check()
    await registry.close()


async def test_a_missing_bundle_is_named(tmp_path: Path, bundles: list[str], loads: Loads) -> None:
    registry = ModelRegistry([str(tmp_path / "absent"), *bundles], Bundles(), 2, loads)
    await registry.open()
    with pytest.raises(BundleError, match="absent"):
        await registry.check()
    assert len(registry.identities) == 3
    await registry.close()


# --- What comes later. ----------------------------------------------------------------------------


# Look again every few milliseconds.
IMPATIENT = Retries(read=0.02, max_read=0.02, load=0.01, max_load=0.01)


async def ready(registry: ModelRegistry) -> None:
    """Wait until the worker would be ready; the test's own timeout ends it otherwise."""
    while True:
        try:
            return await registry.check()
        except (BundleError, ModelUnavailable):
            await asyncio.sleep(0.01)


def appear(folder: Path) -> None:
    """A bundle of its folder's name, there from one moment to the next: half of one may fail."""
    write_colour_bundle(folder.with_suffix(".new"), folder.name).rename(folder)


async def test_what_was_missing_is_found_by_itself(tmp_path: Path, loads: Loads) -> None:
    late, other = tmp_path / "late", tmp_path / "other"
    registry = ModelRegistry([str(late), str(other)], Bundles(), 2, loads, retries=IMPATIENT)
    await registry.open()
    assert list(registry.identities) == []
    await asyncio.to_thread(appear, other)
    await until(lambda: registry.identities != ())
    # Nobody asks for anything: it is found, and loaded, all the same.
    await asyncio.to_thread(appear, late)
    await until(lambda: loads.models != [])
    await ready(registry)
    assert loads.models == ["late"]
    assert registry.identities == (identity(str(late)), identity(str(other)))
    await registry.close()


async def test_a_default_that_was_mended_into_another_model_is_taken(
    bundles: list[str], loads: Loads
) -> None:
    """As when the sums were left out of an upload, and came behind it."""
    labels = Path(bundles[0]) / "labels.txt"
    labels.write_text(labels.read_text().upper())
    before = identity(bundles[0])
    registry = ModelRegistry(bundles, Bundles(), 2, loads, retries=IMPATIENT)
    await registry.open()
    assert registry.identities[0] == before
    await asyncio.to_thread(write_sums, Path(bundles[0]))
    await ready(registry)
    assert registry.identities[0] == identity(bundles[0]) != before
    await registry.close()


async def test_nothing_is_looked_for_once_all_is_there(bundles: list[str], loads: Loads) -> None:
    looked: list[str] = []

    class Counting(Bundles):
        def manifest(self, uri: str) -> Bundle:
            looked.append(uri)
            return super().manifest(uri)

    away = await asyncio.to_thread(shutil.move, bundles[1], f"{bundles[1]}-away")
    registry = ModelRegistry(bundles, Counting(), 2, loads, retries=IMPATIENT)
    await registry.open()
    assert looked == bundles
    await until(lambda: len(looked) >= 6)
    # What was there is not read again: it could be another bundle by now.
    assert set(looked[3:]) == {bundles[1]}
    await asyncio.to_thread(shutil.move, away, bundles[1])
    await until(lambda: len(registry.identities) >= 3)
    seen = len(looked)
    await asyncio.sleep(0.2)
    assert len(looked) == seen
    await registry.close()


async def test_a_model_that_fails_is_loaded_ever_less_often(
    bundles: list[str], loads: Loads
) -> None:
    """Each time may be gigabytes out of a bucket."""
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


async def test_a_closed_registry_looks_for_nothing(tmp_path: Path, loads: Loads) -> None:
    registry = ModelRegistry([str(tmp_path / "absent")], Bundles(), 2, loads, retries=IMPATIENT)
    await registry.open()
    others = asyncio.all_tasks()
    await registry.close()
    assert len(others - asyncio.all_tasks()) == 1
