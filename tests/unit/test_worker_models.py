"""The registry: what is loaded when, how often, and what happens when it cannot be."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.backends.bundles import Bundles
from core.errors import BundleError, ModelUnavailable
from core.model_bundle import Bundle, read_bundle
from tests.support.bundles import write_colour_bundle
from tests.unit.worker_support import settings_in
from worker import model_registry
from worker.classifier_pool import ClassifierPool, RemoteClassifier
from worker.model_registry import ModelRegistry


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
    pool = ClassifierPool(settings_in(tmp_path, worker_concurrency=1))
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
    bundles: list[str], loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = identity(bundles[1])
    bad = Path(bundles[0])
    whole = (bad / "labels.txt").read_text()
    (bad / "labels.txt").write_text(whole.upper())
    registry = ModelRegistry(bundles, Bundles(), 2, loads)
    await registry.open()
    with pytest.raises(ModelUnavailable):
        await registry.check()
    assert (await registry.classifier(good)).bundle.manifest.name == "b"
    assert loads.models == ["a", "b"], "a failed load is not repeated for every message"
    # Once the time to try again has come, a repaired bundle is taken.
    (bad / "labels.txt").write_text(whole)
    monkeypatch.setattr(model_registry, "LOAD_RETRY_SECONDS", 0.0)
    await registry.check()


async def test_a_missing_bundle_is_named(tmp_path: Path, bundles: list[str], loads: Loads) -> None:
    registry = ModelRegistry([str(tmp_path / "absent"), *bundles], Bundles(), 2, loads)
    await registry.open()
    with pytest.raises(BundleError, match="absent"):
        await registry.check()
    assert len(registry.identities) == 3
