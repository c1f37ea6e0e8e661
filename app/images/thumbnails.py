"""Finds the thumbnails that workers have stored, and asks for those that are missing."""

from cachetools import TTLCache

from core.backends import Backend
from core.domain.messages import MakeThumbnail
from core.domain.records import NO_THUMBNAIL, RecordKey, thumbnail_name
from core.errors import NotFound
from core.services.publishing import publish

# A client that repeats its request must not publish a message each time. A message that is lost is
# published again after this time, in seconds.
REQUEST_SECONDS = 30.0
MAX_REQUESTS = 10_000


class Thumbnails:
    """The thumbnails of one process's clients."""

    def __init__(self, backend: Backend, *, enabled: bool) -> None:
        self._backend = backend
        self._enabled = enabled
        self._requested: TTLCache[str, bool] = TTLCache(MAX_REQUESTS, REQUEST_SECONDS)

    async def find(self, key: RecordKey) -> bytes | None:
        """The image's thumbnail as WebP, or None while a worker makes it.

        `key` is of the current model. Raises NotFound if there is no image, if it cannot be
        decoded, or if the service makes no thumbnails.
        """
        if not self._enabled:
            raise NotFound("This service makes no thumbnails (THUMBNAILS).")
        name = thumbnail_name(key.tenant, key.image_hash)
        try:
            found = await self._backend.blobs.get(name)
        except NotFound:
            await self._request(key, name)
            return None
        if found == NO_THUMBNAIL:
            raise NotFound("The image has no thumbnail, because it cannot be decoded.")
        return found

    async def _request(self, key: RecordKey, name: str) -> None:
        """Publish a message for the thumbnail, unless one is on its way. Raises NotFound."""
        if not await self._backend.blobs.exists(key.blob_name):
            raise NotFound("No such image.")
        record = await self._backend.records.get(key)
        if record is not None and not record.status.terminal:
            return  # the worker that classifies the image makes it
        if self._requested.get(name):
            return
        self._requested[name] = True
        try:
            message = MakeThumbnail(key.tenant, key.image_hash)
            await publish(self._backend.publisher, message)
        except BaseException:
            del self._requested[name]
            raise
