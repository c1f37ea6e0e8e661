"""Submits, finds, links to and deletes images. The routes translate HTTP to these calls."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from app.images.representation import Representation, represent
from app.images.result_cache import CACHE_ENTRIES, CACHE_SECONDS, ResultCache
from app.images.result_waiter import ResultWaiter, Wait
from app.images.selection import Selection
from app.images.submission import Submissions, SubmittedImage
from app.images.view import View
from app.metrics import ApiMetrics
from app.models.catalogue import ModelCatalogue
from app.uploads.image_upload import Upload
from core.backends import Backend
from core.clock import Clock
from core.domain.deletions import new_owner
from core.domain.records import IMAGE_HASH, MODEL, ImageKey, Record, RecordKey, Status
from core.errors import InvalidRequest, NotFound, Unavailable
from core.imaging.formats import accepted_type
from core.observability.logs import bind_image
from core.services.image_deletion import complete_unconfirmed, delete_image
from core.settings import Settings

log = structlog.get_logger(__name__)

CLOSE_SECONDS = 2.0
LINK_VALIDITY = timedelta(minutes=15)
NO_WAIT = Wait()
UNKNOWN_IMAGE = "There is no such image, or it has no result of this model."


class ImageService:
    """Images, each under one or several models.

    `default_view` is the view of requests that select none, and `default_selection` what they
    select.
    """

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        models: ModelCatalogue,
        metrics: ApiMetrics,
        clock: Clock,
    ) -> None:
        self.default_view = View.default(settings)
        self.default_selection = Selection("", self.default_view)
        self.waiter = ResultWaiter(backend.records)
        self._settings = settings
        self._backend = backend
        self._models = models
        self._default_model = models.default.id
        self._metrics = metrics
        self._clock = clock
        self._cache = ResultCache(CACHE_ENTRIES, CACHE_SECONDS)
        self._submissions = Submissions(backend, settings.pixel_limits, clock, settings.delivery)
        self._completions: set[asyncio.Task[None]] = set()  # of deletions whose answer was lost

    async def submit(
        self,
        key: RecordKey,
        upload: Upload,
        view: View,
        wait: Wait,
    ) -> tuple[Representation, bool]:
        """Submit an image, and wait for its result.

        Returns the `view` of the record, and whether it was terminal before. Releases the upload
        once it is stored, so that a client that waits holds no bytes. The wait ends if the client
        disconnects. Raises UnsupportedImage, InvalidImage, Unavailable.
        Stores nothing of a refused image.
        """
        image = SubmittedImage(key, upload.data, accepted_type(upload.data))
        return await self._submit(image, view, wait, upload.release)

    async def classify_stored(
        self, key: RecordKey, view: View, wait: Wait
    ) -> tuple[Representation, bool]:
        """Same as `submit`, for an image that the service has. Raises NotFound if it has not."""
        return await self._submit(SubmittedImage(key, None), view, wait)

    async def find(
        self,
        tenant: str,
        image_hash: str,
        selection: Selection,
        wait: Wait = NO_WAIT,
    ) -> Representation:
        """The selected view of a record, after waiting for its result.

        Without a model, the record is that of the default model, or else of another one. Then it
        has no entity tag: the image may get a result of the default model. The wait ends if the
        client disconnects. Raises NotFound, UnknownModel, InvalidRequest.
        """
        view = selection.view
        if selection.model:
            key = await self.key_under(tenant, image_hash, selection.model)
        else:
            # Before the key is made, whose checks take longer than all of this.
            if view is self.default_view:
                cached = self._cache.find(tenant, image_hash.lower(), self._default_model)
                if cached is not None:
                    bind_image(ImageKey(tenant, cached.image_hash))
                    return cached
            key = self.key(tenant, image_hash)
        bind_image(key)
        if view is self.default_view and (cached := self._cache.get(key)) is not None:
            return cached
        record = await self._backend.records.get(key)
        if record is None:
            record = await self._under_another_model(key, selection.model)
        if record is not None and wait.seconds > 0 and not record.status.terminal:
            ended = await self._until_terminal(record.key, wait)
            record = ended or await self._backend.records.get(record.key)
        if record is None:
            raise NotFound(UNKNOWN_IMAGE)
        result = self._represent(record, view)
        return result if record.key == key else replace(result, etag=None)

    async def known_key(self, tenant: str, image_hash: str, model: str) -> RecordKey:
        """The key of the image's record under `model`, a name or an id.

        An empty `model` is the default one. If the image has no record under that, the key of its
        record under another model. Raises NotFound, UnknownModel, InvalidRequest.
        """
        if model:
            key = await self.key_under(tenant, image_hash, model)
        else:
            key = self.key(tenant, image_hash)
        if self._cache.get(key) is not None or await self._backend.records.get(key) is not None:
            return key
        record = await self._under_another_model(key, model)
        if record is None:
            raise NotFound(UNKNOWN_IMAGE)
        return record.key

    async def key_under(self, tenant: str, image_hash: str, model: str) -> RecordKey:
        """The key under which to read an image; `model` is a name or an id.

        An id need not be known: the image may have a result of a model that the service had, or
        that another revision of the service has. Raises UnknownModel, InvalidRequest.
        """
        if not MODEL.fullmatch(model):
            model = (await self._models.resolve(tenant, model)).id
        return self.key(tenant, image_hash, model)

    async def content_link(self, tenant: str, image_hash: str) -> str:
        """An expiring link to the image's bytes. Raises NotFound, InvalidRequest."""
        key = self.key(tenant, image_hash)
        bind_image(key)
        if not await self._backend.blobs.exists(key.blob_name):
            raise NotFound("No such image.")
        return await self._backend.blobs.signed_url(key.blob_name, LINK_VALIDITY)

    async def delete(self, tenant: str, image_hash: str) -> None:
        """Delete the tenant's image and its results under every model.

        If this fails after its first write, this process completes the deletion in the background,
        or another process does. Raises NotFound, InvalidRequest, Unavailable.
        """
        key = self.key(tenant, image_hash)
        bind_image(key)
        owner = new_owner()
        async with self._submissions.deleting(key.blob_name):
            try:
                await delete_image(self._backend, key.image, self._clock, owner)
            except Unavailable:
                self._complete_later(key.image, owner)
                raise
            finally:
                self._cache.drop_image(tenant, key.image_hash)
        log.info("deleted")

    def _complete_later(self, image: ImageKey, owner: str) -> None:
        task = asyncio.create_task(complete_unconfirmed(self._backend, image, owner, self._clock))
        self._completions.add(task)
        task.add_done_callback(self._completions.discard)

    def forget_model(self, tenant: str, model: str) -> None:
        """Answer no longer with the results of a model that is deleted."""
        self._cache.drop_model(tenant, model)

    def key(self, tenant: str, image_hash: str, model: str = "") -> RecordKey:
        """The key of an image under the model with the id `model`, by default the default one.

        `image_hash` may have capital letters. Raises InvalidRequest if it is malformed.
        """
        image_hash = image_hash.lower()
        check_hash(image_hash)
        return RecordKey(tenant, image_hash, model or self._default_model)

    def stop(self) -> None:
        """Answer waiting clients now, with what is known."""
        self.waiter.stop()

    async def close(self) -> None:
        """Finish the submissions that have begun, for at most `CLOSE_SECONDS`."""
        self.stop()
        for task in self._completions:  # another process completes these deletions
            task.cancel()
        await asyncio.gather(*self._completions, return_exceptions=True)
        try:
            await asyncio.wait_for(self._submissions.close(), CLOSE_SECONDS)
        except TimeoutError:
            log.error("uploads not finished at shutdown")

    async def _submit(
        self,
        image: SubmittedImage,
        view: View,
        wait: Wait,
        on_stored: Callable[[], None] = lambda: None,
    ) -> tuple[Representation, bool]:
        key = image.key
        bind_image(key)
        if view is self.default_view and (cached := self._cache.get(key)) is not None:
            self._metrics.uploaded(cached.status, cached=True)
            return cached, True
        record = await self._submissions.submit(image)
        on_stored()
        known = record.status.terminal
        if wait.seconds > 0 and not record.status.terminal:
            # If the image is deleted in between, the response is the record that was accepted.
            record = await self._until_terminal(key, wait) or record
        self._metrics.uploaded(record.status, cached=False)
        return self._represent(record, view), known

    async def _until_terminal(self, key: RecordKey, wait: Wait) -> Record | None:
        return await self.waiter.until_terminal(key, wait.seconds, wait.receive, wait.key_id)

    async def _under_another_model(self, key: RecordKey, model: str) -> Record | None:
        """The image's newest success under any model, or else its newest record.

        None if the request names a `model`, to which the answer has to belong. Raises UnknownModel
        if nothing has a model of that name and the image is known.
        """
        records = await self._backend.records.of_image(key.tenant, key.image_hash)
        if records and model:
            await self._models.resolve(key.tenant, model)
            return None
        return max(records, key=_preference, default=None)

    def _represent(self, record: Record, view: View) -> Representation:
        result = represent(record, view, self._settings.public_url)
        if view is self.default_view:
            self._cache.put(record.key, result)
        return result


def _preference(record: Record) -> tuple[bool, datetime]:
    return record.status is Status.SUCCESS, record.created_at


def check_hash(image_hash: str) -> None:
    """Raise InvalidRequest unless `image_hash` is SHA-256 in lower-case hex."""
    if not IMAGE_HASH.fullmatch(image_hash):
        raise InvalidRequest(
            "An image hash is the SHA-256 of the image's bytes: 64 hexadecimal digits.",
            extra={"field": "image_hash"},
        )
