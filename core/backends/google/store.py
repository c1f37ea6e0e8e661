"""What the Datastore stores share: reading one object by its key, and changing it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from core.backends.google.datastore import Datastore, RawMutation
from core.clock import Clock, utc_now
from core.domain.transitions import Transition

K = TypeVar("K")
T = TypeVar("T")


class DatastoreStore(ABC, Generic[K, T]):
    """`core.ports.Store` over a key and the two directions between object and entity.

    Every commit is durable: Datastore has no weaker one to choose.
    """

    def __init__(self, datastore: Datastore, clock: Clock = utc_now) -> None:
        self._datastore = datastore
        self._keys = datastore.keys
        self._clock = clock

    async def get(self, key: K) -> T | None:
        entity = await self._datastore.find(self._raw_key(key))
        return None if entity is None else self._state_of(entity)

    async def change(self, key: K, transition: Transition[T]) -> T | None:
        raw_key = self._raw_key(key)

        async def apply(transaction: bytes) -> tuple[T | None, list[Any]]:
            entity = await self._datastore.find_in(raw_key, transaction)
            if entity is None:
                return None, []
            after = transition(self._state_of(entity), self._clock())
            if after is None:
                return None, []
            # An update, not an upsert: an entity that was deleted meanwhile stays deleted.
            return after, [RawMutation(update=self._changed(entity, after))]

        return await self._datastore.transact(apply)

    async def _delete(
        self, key: K, dependents: Callable[[Any], Sequence[Any]] = lambda entity: ()
    ) -> bool:
        """Delete the entity and its `dependents`, by their keys. Returns False if there is none."""
        raw_key = self._raw_key(key)

        async def delete(transaction: bytes) -> tuple[bool, list[Any]]:
            entity = await self._datastore.find_in(raw_key, transaction)
            if entity is None:
                return False, []
            return True, [RawMutation(delete=each) for each in (raw_key, *dependents(entity))]

        return await self._datastore.transact(delete)

    @abstractmethod
    def _raw_key(self, key: K) -> Any: ...

    @abstractmethod
    def _state_of(self, entity: Any) -> T: ...

    @abstractmethod
    def _changed(self, entity: Any, state: T) -> Any:
        """`entity` with the new state."""
