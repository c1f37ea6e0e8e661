"""Trained models in Datastore: `Model/{name}` and `Base/{identity}`, in the tenant's namespace.

A model is one JSON text, which stays far below the limit of an entity: its versions and corrections
are limited in number, and what takes more room is in blobs. No property is indexed.
"""

from collections.abc import Sequence
from typing import Any

from core.backends.google.entities import RawEntity, set_text
from core.backends.google.queries import query_for
from core.backends.google.store import DatastoreStore
from core.domain.model_codec import model_of_text, text_of_model
from core.domain.trained_models import ModelKey, TrainedModel

MODEL_KIND, BASE_KIND = "Model", "Base"
_DOCUMENT = "document"


class DatastoreModelStore(DatastoreStore[ModelKey, TrainedModel]):
    """`core.ports.ModelStore`."""

    async def create(self, model: TrainedModel) -> bool:
        entity = _entity_of(model, self._raw_key(model.key))
        return await self._datastore.insert(entity, model.key.tenant)

    async def list(self, tenant: str) -> Sequence[TrainedModel]:
        entities = await self._datastore.query(tenant, query_for(MODEL_KIND))
        return sorted(map(self._state_of, entities), key=lambda model: model.key.name)

    async def delete(self, key: ModelKey) -> bool:
        return await self._delete(key)

    async def add_base(self, tenant: str, base: str) -> None:
        # Where it exists already, the insertion changes nothing.
        await self._datastore.insert(RawEntity(key=self._base_key(tenant, base)), tenant)

    async def bases(self, tenant: str) -> Sequence[str]:
        query = query_for(BASE_KIND, keys_only=True)
        found = await self._datastore.query(tenant, query)
        return sorted(entity.key.path[-1].name for entity in found)

    def _raw_key(self, key: ModelKey) -> Any:
        return self._keys.path(self._keys.namespace(key.tenant), (MODEL_KIND, key.name))

    def _base_key(self, tenant: str, base: str) -> Any:
        return self._keys.path(self._keys.namespace(tenant), (BASE_KIND, base))

    def _state_of(self, entity: Any) -> TrainedModel:
        return model_of_text(entity.properties[_DOCUMENT].string_value)

    def _changed(self, entity: Any, state: TrainedModel) -> Any:
        return _entity_of(state, entity.key)


def _entity_of(model: TrainedModel, raw_key: Any) -> Any:
    entity = RawEntity(key=raw_key)
    set_text(entity.properties[_DOCUMENT], text_of_model(model))
    return entity
