"""Submits, finds, links to and deletes images. The routes translate HTTP to these calls."""

import asyncio
from datetime import timedelta

import structlog
from starlette.types import Receive

from app.images.header import accepted_type
from app.images.representation import Representation, represent
from app.images.result_cache import CACHE_ENTRIES, CACHE_SECONDS, ResultCache
from app.images.result_waiter import ResultWaiter
from app.images.submission import Submissions, SubmittedImage
from app.metrics import ApiMetrics
from app.uploads.image_upload import Upload
from core.backends import Backend
from core.clock import Clock, utc_now
from core.domain.records import IMAGE_HASH, Record, RecordKey
from core.errors import InvalidRequest, NotFound
from core.observability.logs import bind_image
from core.settings import Settings

log = structlog.get_logger(__name__)

CLOSE_SECONDS = 2.0
LINK_VALIDITY = timedelta(minutes=15)
UNKNOWN_IMAGE = "No such image, or not under this model."


class ImageService:
    """Images under one model."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        model: str,
        metrics: ApiMetrics,
        clock: Clock = utc_now,
    ) -> None:
        """`model` is the identity of the model that classifies new images."""
        self.waiter = ResultWaiter(backend.records)
        self._settings = settings
        self._backend = backend
        self._model = model
        self._metrics = metrics
        self._cache = ResultCache(CACHE_ENTRIES, CACHE_SECONDS)
        self._submissions = Submissions(
            backend, settings.max_image_pixels, clock, settings.delivery
        )

    async def submit(
        self, tenant: str, upload: Upload, wait: float, receive: Receive
    ) -> tuple[Representation, bool]:
        """Submit an image of `tenant`, and wait for its result for at most `wait` seconds.

        Returns the record, and whether it was terminal before. Releases the upload once it is
        stored, so that a client that waits holds no bytes. The wait ends if the client disconnects,
        as `receive` reports. Raises UnsupportedImage, InvalidImage, Unavailable. Stores nothing of
        a refused image.
        """
        content_type = accepted_type(upload.data)
        key = RecordKey(tenant, upload.image_hash, self._model)
        bind_image(key)
        cached = self._cache.get(key)
        if cached is not None:
            self._metrics.uploaded(cached.status, cached=True)
            return cached, True
        image = SubmittedImage(key, upload.data, content_type)
        record = await self._submissions.submit(image)
        upload.release()
        known = record.status.terminal
        if wait > 0 and not record.status.terminal:
            # If the image is deleted in between, the response is the record that was accepted.
            record = await self.waiter.until_terminal(key, wait, receive) or record
        self._metrics.uploaded(record.status, cached=False)
        return self._represent(record), known

    async def find(
        self, key: RecordKey, wait: float = 0, receive: Receive | None = None
    ) -> Representation:
        """The record, after waiting for its result for at most `wait` seconds. Raises NotFound.

        The wait ends if the client disconnects, as `receive` reports.
        """
        bind_image(key)
        cached = self._cache.get(key)
        if cached is not None:
            return cached
        record = await self._backend.records.get(key)
        if record is not None and wait > 0 and not record.status.terminal:
            ended = await self.waiter.until_terminal(key, wait, receive)
            record = ended or await self._backend.records.get(key)
        if record is None:
            raise NotFound(UNKNOWN_IMAGE)
        return self._represent(record)

    async def content_link(self, tenant: str, image_hash: str) -> str:
        """An expiring link to the image's bytes. Raises NotFound, InvalidRequest."""
        key = self.key(tenant, image_hash)
        bind_image(key)
        if not await self._backend.blobs.exists(key.blob_name):
            raise NotFound("No such image.")
        return await self._backend.blobs.signed_url(key.blob_name, LINK_VALIDITY)

    async def delete(self, tenant: str, image_hash: str) -> None:
        """Delete the tenant's image and its results under every model.

        Raises NotFound, InvalidRequest. Deletes the blob first: if the rest fails, a record still
        shows what to delete.
        """
        key = self.key(tenant, image_hash)
        bind_image(key)
        async with self._submissions.deleting(key.blob_name):
            had_blob = await self._backend.blobs.delete(key.blob_name)
            records = await self._backend.records.delete_image(tenant, image_hash)
            self._cache.drop_image(tenant, image_hash)
        if not (had_blob or records):
            raise NotFound("No such image.")
        log.info("deleted", records=records)

    def key(self, tenant: str, image_hash: str, model: str = "") -> RecordKey:
        """The key of an image under `model`, by default the current one. Raises InvalidRequest."""
        check_hash(image_hash)
        try:
            return RecordKey(tenant, image_hash, model or self._model)
        except ValueError as error:
            raise InvalidRequest(f"The parameter {error}.", extra={"field": "model"}) from None

    def stop(self) -> None:
        """Answer waiting clients now, with what is known."""
        self.waiter.stop()

    async def close(self) -> None:
        """Finish the submissions that have begun, for at most `CLOSE_SECONDS`."""
        self.stop()
        try:
            await asyncio.wait_for(self._submissions.close(), CLOSE_SECONDS)
        except TimeoutError:
            log.error("uploads not finished at shutdown")

    def _represent(self, record: Record) -> Representation:
        result = represent(record, self._settings.public_url)
        self._cache.put(record.key, result)
        return result


def check_hash(image_hash: str) -> None:
    """Raise InvalidRequest unless `image_hash` is SHA-256 in lower-case hex."""
    if not IMAGE_HASH.fullmatch(image_hash):
        raise InvalidRequest(
            "An image hash is the SHA-256 of the image's bytes: 64 hex digits in lower case.",
            extra={"field": "image_hash"},
        )
