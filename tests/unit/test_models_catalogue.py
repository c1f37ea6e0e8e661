"""The catalogue of models, and `/api/v1/models`."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from glimpse_client.types import model_of

from app.models import catalogue
from app.models.catalogue import BundleModels, ModelCatalogue, ModelRef
from core.backends.bundles import Bundles
from core.bundles.bundle import read_bundle, write_sums
from core.bundles.python_bundle import AnyBundle
from core.errors import BundleError, BundleUnavailable, Unavailable, UnknownModel
from tests.support.api import api_settings, eventually, open_api
from tests.support.bundles import COLOURS, write_colour_bundle
from tests.support.problems import assert_problem


@pytest.fixture
def other_bundle(tmp_path: Path) -> Path:
    folder = write_colour_bundle(tmp_path / "other", name="other")
    (folder / "MODEL_CARD.md").write_text("# Other\nA test model.\n", encoding="utf-8")
    return folder


@pytest.fixture
def default(colour_bundle: Path) -> ModelRef:
    return ModelRef.of_bundle(read_bundle(colour_bundle))


class Trained:
    """A source with models of one tenant."""

    def __init__(self, *models: ModelRef) -> None:
        self.models = models

    async def find(self, tenant: str, name_or_id: str) -> ModelRef | None:
        found = (m for m in await self.list(tenant) if name_or_id in (m.id, m.name))
        return next(found, None)

    async def list(self, tenant: str) -> Sequence[ModelRef]:
        return self.models if tenant == "ada" else ()


class ScriptedBundles(Bundles):
    """Raises the scripted errors, in order, before it reads a bundle."""

    def __init__(self, *errors: BundleError) -> None:
        super().__init__()
        self.errors = list(errors)

    def manifest(self, uri: str) -> AnyBundle:
        if self.errors:
            raise self.errors.pop(0)
        return super().manifest(uri)


async def test_source_adds_models_of_its_tenant(default: ModelRef) -> None:
    own = replace(default, id="mine@0123456789ab", name="mine")
    models = ModelCatalogue(default, [Trained(own)])
    for name in ("mine", own.id):
        assert await models.resolve("ada", name) is own
        with pytest.raises(UnknownModel) as raised:
            await models.resolve("bob", name)
        assert raised.value.extra["known"] == [default.id]
    assert await models.list("ada") == [default, own]
    assert await models.list("bob") == [default]


async def test_default_hides_equal_names_of_other_sources(default: ModelRef) -> None:
    older = replace(default, id="colours@0123456789ab")
    models = ModelCatalogue(default, [Trained(older)])
    assert await models.resolve("ada", "colours") is default
    assert await models.resolve("ada", "") is default
    assert await models.resolve("ada", older.id) is older


@pytest.fixture
async def retries(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(catalogue, "retry_delays", lambda: iter([0.0] * 100))
    yield


async def test_bundle_is_read_once_it_is_available(other_bundle: Path, retries: None) -> None:
    broken, missing = BundleError("broken"), BundleUnavailable("missing")
    source = BundleModels([str(other_bundle)], ScriptedBundles(broken, missing, missing))
    await source.open()

    async def read() -> bool:
        return bool(await source.list("ada"))

    await eventually(read)
    found = await source.find("ada", "other")
    assert found is not None and found.card.startswith("# Other")
    await source.close()


async def test_start_does_not_wait_for_a_slow_bundle(
    other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "FIRST_READ_SECONDS", 0.0)
    readable = threading.Event()

    class SlowBundles(Bundles):
        def manifest(self, uri: str) -> AnyBundle:
            assert readable.wait(30)
            return super().manifest(uri)

    source = BundleModels([str(other_bundle)], SlowBundles())
    try:
        async with asyncio.timeout(5):
            await source.open()
        assert await source.list("ada") == []
        with pytest.raises(Unavailable):
            await source.find("ada", "other")
    finally:
        readable.set()

    async def read() -> bool:
        return bool(await source.list("ada"))

    await eventually(read)
    await source.close()


@pytest.mark.parametrize("error", [BundleUnavailable("missing"), BundleError("broken")])
async def test_name_of_an_unavailable_bundle_is_not_called_unknown(
    other_bundle: Path, error: BundleError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "retry_delays", lambda: iter([3600.0]))
    source = BundleModels([str(other_bundle)], ScriptedBundles(error))
    await source.open()
    if isinstance(error, BundleUnavailable):
        with pytest.raises(Unavailable):
            await source.find("ada", "other")
    else:
        assert await source.find("ada", "other") is None
    assert await source.list("ada") == []
    await source.close()


async def test_models_are_listed_and_read(
    tmp_path: Path, colour_bundle: Path, other_bundle: Path
) -> None:
    settings = api_settings(tmp_path, colour_bundle, extra_model_uris=(str(other_bundle),))
    async with open_api(settings) as api:
        first, second = (await api.client.get("/api/v1/models")).json()["models"]
        assert (first["id"], first["default"]) == (api.services.model, True)
        assert second == {
            "id": read_bundle(other_bundle).identity,
            "name": "other",
            "default": False,
            "label_count": len(COLOURS),
            "trained": False,
            "threshold": None,
            "category_threshold": None,
            "input": {"width": 8, "height": 8},
        }
        for name in (second["id"], "other"):
            found = (await api.client.get(f"/api/v1/models/{name}")).json()
            assert found == {
                **second,
                "labels": list(COLOURS),
                "categories": {},
                "card": "# Other\nA test model.\n",
                # Of trained models only.
                **dict.fromkeys(("base", "versions", "active_version", "corrections")),
            }
        assert (await api.client.get(f"/api/v1/models/{first['name']}")).json()["card"] is None
        refused = assert_problem(await api.client.get("/api/v1/models/cats"), 404, "not_found")
        assert refused["known"] == [first["id"], second["id"]]


async def test_model_shows_the_thresholds_that_decide_whether_a_result_is_confident(
    tmp_path: Path, colour_bundle: Path
) -> None:
    folder = write_colour_bundle(tmp_path / "sure", name="sure")
    manifest = json.loads((folder / "model.json").read_text())
    manifest |= {"threshold": 0.9, "category_threshold": 0.99}
    (folder / "model.json").write_text(json.dumps(manifest))
    write_sums(folder)
    settings = api_settings(tmp_path, colour_bundle, extra_model_uris=(str(folder),))
    async with open_api(settings) as api:
        listed = (await api.client.get("/api/v1/models")).json()["models"][1]
        shown = (await api.client.get("/api/v1/models/sure")).json()
        for found in (listed, shown):
            assert (found["threshold"], found["category_threshold"]) == (0.9, 0.99)
            model = model_of(found)
            assert (model.threshold, model.category_threshold) == (0.9, 0.99)


async def test_service_starts_without_an_extra_bundle(tmp_path: Path, colour_bundle: Path) -> None:
    settings = api_settings(tmp_path, colour_bundle, extra_model_uris=(str(tmp_path / "nowhere"),))
    async with open_api(settings) as api:
        (model,) = (await api.client.get("/api/v1/models")).json()["models"]
        assert model["id"] == api.services.model
        response = await api.client.post("/api/v1/images?model=nowhere", content=b"")
        assert_problem(response, 422, "unknown_model")
