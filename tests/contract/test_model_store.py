"""Every method of the ModelStore port, each change and each refusal."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from core.backends import Backend
from core.domain import trained_models
from core.domain.trained_models import (
    MAX_CORRECTIONS,
    MAX_VERSIONS,
    ModelKey,
    ModelVersion,
    TrainedModel,
    new_model,
)
from core.ports import ModelStore
from tests.support.clock import MovableClock

KEY = ModelKey("acme", "birds")
BASE = "base@0123456789ab"


@pytest.fixture
def store(backend: Backend) -> ModelStore:
    return backend.models


def version(number: int, clock: MovableClock) -> ModelVersion:
    return ModelVersion(
        id=f"birds@{number:012x}",
        job=f"{number:032x}",
        base=BASE,
        created_at=clock(),
        images=100 + number,
        labels=7,
        accuracy=0.875,
        accuracy_interval=(0.8, 0.925),
        macro_f1=0.86,
    )


async def created(store: ModelStore, clock: MovableClock, key: ModelKey = KEY) -> TrainedModel:
    model = new_model(key, clock())
    assert await store.create(model)
    return model


async def stored(store: ModelStore, key: ModelKey = KEY) -> TrainedModel:
    found = await store.get(key)
    assert found is not None
    return found


async def with_versions(store: ModelStore, clock: MovableClock, count: int) -> TrainedModel:
    """The stored model with the versions 1 to `count`, of which the first is active."""
    await created(store, clock)
    for number in range(1, count + 1):
        add = trained_models.add_version(version(number, clock), activate=False)
        assert await store.change(KEY, add) is not None
    return await stored(store)


async def test_unknown_model_is_none_and_refuses_changes(
    store: ModelStore, clock: MovableClock
) -> None:
    assert await store.get(KEY) is None
    assert await store.list("acme") == []
    add = trained_models.add_version(version(1, clock), activate=True)
    assert await store.change(KEY, add) is None
    assert await store.change(KEY, trained_models.begin_deletion()) is None
    assert not await store.delete(KEY)


async def test_model_is_created_once(store: ModelStore, clock: MovableClock) -> None:
    model = await created(store, clock)
    clock.move(5)
    assert not await store.create(new_model(KEY, clock()))
    assert await stored(store) == model


async def test_one_of_many_concurrent_creations_wins(
    store: ModelStore, clock: MovableClock
) -> None:
    made = await asyncio.gather(*(store.create(new_model(KEY, clock())) for _ in range(10)))
    assert sum(made) == 1


async def test_version_is_returned_unchanged(store: ModelStore, clock: MovableClock) -> None:
    await created(store, clock)
    clock.move(5)
    add = trained_models.add_version(version(1, clock), activate=False)
    after = await store.change(KEY, add)
    assert after is not None
    assert after == await stored(store)
    assert after.versions == (version(1, clock),)
    assert after.active == "birds@000000000001"  # the first is active in any case
    assert after.updated_at == clock()
    assert after.created_at == clock() - timedelta(seconds=5)


async def test_same_version_is_added_once(store: ModelStore, clock: MovableClock) -> None:
    before = await with_versions(store, clock, 1)
    add = trained_models.add_version(version(1, clock), activate=True)
    assert await store.change(KEY, add) is None
    assert await stored(store) == before


async def test_concurrent_additions_are_all_kept(store: ModelStore, clock: MovableClock) -> None:
    await created(store, clock)
    added = [trained_models.add_version(version(n, clock), activate=True) for n in range(1, 6)]
    results = await asyncio.gather(*(store.change(KEY, each) for each in added))
    assert all(results)
    model = await stored(store)
    assert {each.id for each in model.versions} == {f"birds@{n:012x}" for n in range(1, 6)}
    assert model.active == model.versions[-1].id


async def test_model_with_many_versions_is_full(store: ModelStore, clock: MovableClock) -> None:
    model = await with_versions(store, clock, MAX_VERSIONS - 1)
    assert not model.full
    add = trained_models.add_version(version(MAX_VERSIONS, clock), activate=True)
    after = await store.change(KEY, add)
    assert after is not None
    assert after.full


async def test_activation_moves_the_pointer(store: ModelStore, clock: MovableClock) -> None:
    model = await with_versions(store, clock, 2)
    assert model.resolve("birds") == model.versions[0]
    assert await store.change(KEY, trained_models.activate("birds@000000000002"))
    model = await stored(store)
    assert model.resolve("birds") == model.versions[1]
    assert model.resolve("birds@000000000001") == model.versions[0]
    assert await store.change(KEY, trained_models.activate("birds@000000000003")) is None
    add = trained_models.add_version(version(3, clock), activate=True)
    after = await store.change(KEY, add)
    assert after is not None
    assert after.active == "birds@000000000003"


async def test_corrections_are_kept_by_image(store: ModelStore, clock: MovableClock) -> None:
    await created(store, clock)
    assert await store.change(KEY, trained_models.correct({"a" * 64: "owl"})) is None
    await store.change(KEY, trained_models.add_version(version(1, clock), activate=True))
    assert await store.change(KEY, trained_models.correct({"a" * 64: "owl", "b" * 64: "Käuzchen"}))
    assert await store.change(KEY, trained_models.correct({"a" * 64: "none"}))
    corrections = (await stored(store)).corrections
    assert corrections == {"a" * 64: "none", "b" * 64: "Käuzchen"}


async def test_largest_model_fits(store: ModelStore, clock: MovableClock) -> None:
    """Datastore limits an entity to 1 MiB."""
    await with_versions(store, clock, MAX_VERSIONS)
    label = "😀" * 100
    corrections = {f"{number:064x}": label for number in range(MAX_CORRECTIONS)}
    assert await store.change(KEY, trained_models.correct(corrections))
    assert (await stored(store)).corrections == corrections
    assert await store.change(KEY, trained_models.correct({"f" * 64: label})) is None


async def test_deletion_of_a_version_takes_two_steps(
    store: ModelStore, clock: MovableClock
) -> None:
    await with_versions(store, clock, 3)
    first = "birds@000000000001"
    assert await store.change(KEY, trained_models.end_deletion(first)) is None
    model = await store.change(KEY, trained_models.begin_deletion(first))
    assert model is not None
    assert model.resolve(first) is None
    assert model.version(first) is not None  # so that a repeated deletion finds it
    assert model.active == "birds@000000000003"
    assert await store.change(KEY, trained_models.activate(first)) is None
    assert await store.change(KEY, trained_models.begin_deletion(first))
    after = await store.change(KEY, trained_models.end_deletion(first))
    assert after is not None
    assert [each.id for each in after.versions] == ["birds@000000000002", "birds@000000000003"]
    assert after == await stored(store)
    assert await store.change(KEY, trained_models.begin_deletion(first)) is None


async def test_deletion_of_all_versions_deletes_the_corrections(
    store: ModelStore, clock: MovableClock
) -> None:
    await with_versions(store, clock, 2)
    await store.change(KEY, trained_models.correct({"a" * 64: "owl"}))
    model = await store.change(KEY, trained_models.begin_deletion())
    assert model is not None
    assert (model.usable, model.active, model.corrections) == ((), "", {})
    assert await store.delete(KEY)
    assert await store.get(KEY) is None
    assert not await store.delete(KEY)


async def test_lists_are_ordered_by_name_and_belong_to_one_tenant(
    store: ModelStore, clock: MovableClock
) -> None:
    keys = [ModelKey("acme", name) for name in ("owls", "birds", "a-1")]
    for key in (*keys, ModelKey("other", "birds")):
        await created(store, clock, key)
    assert [each.key.name for each in await store.list("acme")] == ["a-1", "birds", "owls"]
    assert [each.key.tenant for each in await store.list("other")] == ["other"]
    assert await store.delete(KEY)
    assert await store.get(ModelKey("other", "birds")) is not None


async def test_bases_belong_to_a_tenant(store: ModelStore) -> None:
    assert await store.bases("acme") == []
    other = "another@0123456789ab"
    await asyncio.gather(*(store.add_base("acme", each) for each in (BASE, other, BASE)))
    await store.add_base("acme", BASE)
    assert await store.bases("acme") == [other, BASE]
    assert await store.bases("other") == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: ModelKey("acme", ""),
        lambda: ModelKey("acme", "Birds"),
        lambda: ModelKey("acme", "birds/../x"),
        lambda: ModelKey("acme", "-birds"),
        lambda: ModelKey("acme", "b" * 64),
        lambda: ModelKey("ac/me", "birds"),
    ],
)
def test_malformed_key_is_refused(make: Callable[[], ModelKey]) -> None:
    with pytest.raises(ValueError, match="malformed"):
        make()
