"""The models that a tenant can name in a request, from all sources of models."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import structlog

from core.backends.bundles import Bundles, retry_delays
from core.bundles.bundle import read_card
from core.bundles.python_bundle import AnyBundle, PythonManifest
from core.errors import BundleError, BundleUnavailable, Unavailable, UnknownModel

log = structlog.get_logger(__name__)

FIRST_READ_SECONDS = 5.0  # how long the start waits for the bundles of EXTRA_MODEL_URIS


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model that can classify images, as far as the API knows it.

    `id` is the identity that records have (`name@digest`). `width` and `height` are the size of the
    network's input; a bundle in Python has none, and may have no labels in advance. `threshold` and
    `category_threshold` are those of `BundleManifest`. `card` is the model card as Markdown, empty
    if there is none. `embeds`: it has an embedding, so models can be trained on it. `trained`: it
    is a model of the tenant. `more` has further members of the model's JSON document.
    """

    id: str
    name: str
    labels: tuple[str, ...]
    categories: Mapping[str, Sequence[str]]
    threshold: float | None
    width: int | None
    height: int | None
    category_threshold: float | None = None
    card: str = ""
    embeds: bool = False
    trained: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_bundle(cls, bundle: AnyBundle) -> "ModelRef":
        """The model of a bundle. Blocks: it reads the card."""
        manifest = bundle.manifest
        model = cls(
            bundle.identity,
            manifest.name,
            bundle.labels,
            bundle.categories,
            manifest.threshold,
            width=None,
            height=None,
            card=read_card(bundle.folder),
        )
        if isinstance(manifest, PythonManifest):
            return model
        return replace(
            model,
            width=manifest.input.width,
            height=manifest.input.height,
            category_threshold=manifest.category_threshold,
            embeds=manifest.outputs.embedding is not None,
        )


class ModelSource(Protocol):
    """A place that models come from. Methods raise Unavailable if it does not answer."""

    async def find(self, tenant: str, name_or_id: str) -> ModelRef | None:
        """The model with this id, or the current one with this name."""
        ...

    async def list(self, tenant: str) -> Sequence[ModelRef]:
        """All models that the tenant can use."""
        ...


class ModelCatalogue:
    """Finds models by name or id. An earlier source hides equal names of later ones."""

    def __init__(self, default: ModelRef, sources: Sequence[ModelSource]) -> None:
        """`default` classifies the images of requests that name no model."""
        self.default = default
        self._sources = sources

    async def find(self, tenant: str, name_or_id: str) -> ModelRef | None:
        """The model, or None if no source has it. An empty text finds the default model.

        Raises Unavailable if a source that may have it does not answer.
        """
        if name_or_id in ("", self.default.id, self.default.name):
            return self.default
        for source in self._sources:
            model = await source.find(tenant, name_or_id)
            if model is not None:
                return model
        return None

    async def resolve(self, tenant: str, name_or_id: str) -> ModelRef:
        """Same as `find`. Raises UnknownModel, which names the known models, if there is none."""
        model = await self.find(tenant, name_or_id)
        if model is None:
            known = [each.id for each in await self.list(tenant)]
            raise UnknownModel(
                f"There is no such model. Known models: {', '.join(known)}.",
                extra={"field": "model", "known": known},
            )
        return model

    async def list(self, tenant: str) -> Sequence[ModelRef]:
        """All models of all sources, the default first, each once."""
        models = {self.default.id: self.default}
        for source in self._sources:
            for model in await source.list(tenant):
                models.setdefault(model.id, model)
        return list(models.values())


class BundleModels:
    """The `ModelSource` of the bundles that settings name. Every tenant can use them.

    Bundles that cannot be read are logged, and read again until they can.
    """

    def __init__(self, uris: Sequence[str], bundles: Bundles) -> None:
        self._bundles = bundles
        # By URI, in their order.
        self._found: dict[str, ModelRef | BundleError] = {
            uri: BundleUnavailable(f"{uri} has not been read yet.") for uri in uris
        }
        self._reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Read the manifests. Returns after `FIRST_READ_SECONDS` if that takes longer."""
        if not self._found:
            return
        first = asyncio.Event()
        self._reading = asyncio.create_task(self._read_until_complete(first))
        try:
            await asyncio.wait_for(first.wait(), FIRST_READ_SECONDS)
        except TimeoutError:
            log.warning("serving before every model is read")

    async def close(self) -> None:
        """Stop reading. Downloads end when `bundles` is closed."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def find(self, tenant: str, name_or_id: str) -> ModelRef | None:
        for model in await self.list(tenant):
            if name_or_id in (model.id, model.name):
                return model
        if any(isinstance(each, BundleUnavailable) for each in self._found.values()):
            raise Unavailable("A model of the service cannot be read now. Retry later.")
        return None

    async def list(self, tenant: str) -> Sequence[ModelRef]:
        return [each for each in self._found.values() if isinstance(each, ModelRef)]

    async def _read_until_complete(self, first: asyncio.Event) -> None:
        for pause in retry_delays():
            unread = [uri for uri, found in self._found.items() if isinstance(found, BundleError)]
            await asyncio.gather(*map(self._read, unread))
            first.set()
            if all(isinstance(found, ModelRef) for found in self._found.values()):
                return
            await asyncio.sleep(pause)

    async def _read(self, uri: str) -> None:
        before = self._found[uri]
        try:
            found = await asyncio.to_thread(_model_at, self._bundles, uri)
        except BundleError as error:
            if not isinstance(before, BundleError) or before.detail != error.detail:
                log.error("bundle unreadable", uri=uri, reason=error.detail)
            self._found[uri] = error
        else:
            self._found[uri] = found
            log.info("bundle read", uri=uri, model=found.id)


def _model_at(bundles: Bundles, uri: str) -> ModelRef:
    bundle = bundles.manifest(uri)
    bundles.card(uri, bundle)
    return ModelRef.of_bundle(bundle)
