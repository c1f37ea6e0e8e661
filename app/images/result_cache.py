"""Caches results in memory, so that most lookups need no store."""

from cachetools import TTLCache

from app.images.representation import Representation
from core.domain.records import RecordKey, Status

CACHE_ENTRIES = 10_000
MAX_CACHED_BYTES = 16 * 1024  # larger results are not cached: an output may have 64 KiB
CACHE_SECONDS = 60.0  # also how long a process may answer with the result of a deleted image

_Key = tuple[str, str, str]  # tenant, image hash, model


class ResultCache:
    """Holds successes only: they never change, while an error may be retried."""

    def __init__(self, entries: int, seconds: float) -> None:
        """Keep at most `entries`, each for `seconds`; no entries means no cache."""
        # By tuples, whose hash Python computes in a fifth of the time of a record key's.
        self._results: TTLCache[_Key, Representation] = TTLCache(max(entries, 1), seconds)
        self._enabled = entries > 0
        self._models: set[str] = set()

    def get(self, key: RecordKey) -> Representation | None:
        return self.find(key.tenant, key.image_hash, key.model)

    def find(self, tenant: str, image_hash: str, model: str) -> Representation | None:
        """As `get`, without a record key. None for a malformed hash."""
        try:
            return self._results[tenant, image_hash, model]
        except KeyError:
            return None

    def put(self, key: RecordKey, result: Representation) -> None:
        small = len(result.body) <= MAX_CACHED_BYTES
        if self._enabled and small and result.status is Status.SUCCESS:
            self._results[key.tenant, key.image_hash, key.model] = result
            self._models.add(key.model)

    def drop_image(self, tenant: str, image_hash: str) -> None:
        """Remove the image's results under every model."""
        for model in self._models:
            self._results.pop((tenant, image_hash, model), None)

    def drop_model(self, tenant: str, model: str) -> None:
        """Remove the tenant's results under a model."""
        of_model = [key for key in self._results if (key[0], key[2]) == (tenant, model)]
        for key in of_model:
            self._results.pop(key, None)
