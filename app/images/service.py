"""What one API process does for its clients; the routes only translate HTTP to this and back."""

import asyncio
from datetime import timedelta
from functools import partial

import structlog
from fastapi import FastAPI, Request
from starlette.types import Receive

from app.images.events import image_event
from app.images.header import accepted_type
from app.images.representation import Representation, represent
from app.images.responses import finished_headers
from app.images.result_cache import ResultCache
from app.images.result_waiter import Waiting
from app.images.submission import Candidate, Submissions
from app.metrics import ApiMetrics
from app.streams.registry import LiveStreams
from app.uploads.image_upload import Upload
from app.uploads.limiter import UploadLimits, UploadSlots
from core.backends import Backend
from core.bundles.bundle import Bundle, read_bundle
from core.clock import Clock, utc_now
from core.domain.records import IMAGE_HASH, Record, RecordKey
from core.errors import InvalidRequest, NotFound, Unavailable
from core.http.health import Check
from core.observability.logs import bind_image
from core.settings import Settings

log = structlog.get_logger(__name__)

CLOSE_SECONDS = 2.0
UNKNOWN_IMAGE = "No such image, or not under this model."


class ImageService:
    """Submit, find, read and delete images under one model."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        bundle: Bundle,
        metrics: ApiMetrics,
        clock: Clock = utc_now,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.backend = backend
        self.model = bundle.identity
        self._bundle = bundle
        self.clock = clock
        self.waiting = Waiting(backend.records)
        self.streams = LiveStreams(settings.max_streams, settings.stream_seconds, metrics.live)
        self.watcher = self.streams.watcher(
            "images",
            backend.records.get_many,
            partial(image_event, public_url=settings.public_url),
        )
        self.finished_headers = finished_headers(settings)
        self.uploads = UploadSlots(
            UploadLimits(
                uploads=settings.max_uploads_in_flight,
                bytes_=settings.max_upload_bytes_in_flight,
                grace=settings.upload_grace_seconds,
                rate=settings.min_upload_bytes_per_second,
            )
        )
        self._cache = ResultCache(settings.result_cache_entries, settings.result_cache_seconds)
        self._submissions = Submissions(
            backend, settings.max_image_pixels, clock, settings.delivery
        )

    async def submit(
        self, tenant: str, upload: Upload, wait: float, receive: Receive
    ) -> tuple[Representation, bool]:
        """Take an image of `tenant` in; its record as it stands after at most `wait` seconds.

        And whether it had ended before, so that nothing was left to do. The upload is released once
        it is stored: whoever waits holds none of its bytes. Raises UnsupportedImage, InvalidImage,
        Unavailable. A refused image leaves no trace. A client that leaves, as `receive` tells, is
        waited for no longer.
        """
        content_type = accepted_type(upload.data)
        key = RecordKey(tenant, upload.image_hash, self.model)
        bind_image(key)
        known = self._cache.get(key)
        if known is not None:
            self.metrics.uploaded(known.status, cached=True)
            return known, True
        image = Candidate(key, upload.data, content_type)
        record = await self._submissions.submit(image)
        upload.release()
        ended_before = record.status.terminal
        if wait > 0 and not record.status.terminal:
            # Where it was deleted meanwhile: what was accepted is what there is to say.
            record = await self.waiting.until_terminal(key, wait, receive) or record
        self.metrics.uploaded(record.status, cached=False)
        return self._represent(record), ended_before

    def cached(self, key: RecordKey) -> Representation | None:
        """A finished result that this process remembers."""
        return self._cache.get(key)

    async def find(
        self, key: RecordKey, wait: float = 0, receive: Receive | None = None
    ) -> Representation:
        """The record as it stands, or as it ends within `wait` seconds. Raises NotFound.

        With the request's `receive`, waiting ends where the client leaves.
        """
        bind_image(key)
        known = self._cache.get(key)
        if known is not None:
            return known
        record = await self.backend.records.get(key)
        if record is not None and wait > 0 and not record.status.terminal:
            ended = await self.waiting.until_terminal(key, wait, receive)
            record = ended or await self.backend.records.get(key)
        if record is None:
            raise NotFound(UNKNOWN_IMAGE)
        return self._represent(record)

    async def content_link(self, tenant: str, image_hash: str) -> str:
        """A link to the image's bytes that expires. Raises NotFound, InvalidRequest."""
        key = self.key(tenant, image_hash)
        bind_image(key)
        if not await self.backend.blobs.exists(key.blob_name):
            raise NotFound("No such image.")
        validity = timedelta(seconds=self.settings.link_seconds)
        return await self.backend.blobs.signed_url(key.blob_name, validity)

    async def delete(self, tenant: str, image_hash: str) -> None:
        """Delete the tenant's image and its results under every model.

        Raises NotFound, InvalidRequest. The blob goes first: should we fail in between, a record
        still says what to delete.
        """
        key = self.key(tenant, image_hash)
        bind_image(key)
        async with self._submissions.deleting(key.blob_name):
            had_blob = await self.backend.blobs.delete(key.blob_name)
            records = await self.backend.records.delete_image(tenant, image_hash)
            self._cache.drop_image(tenant, image_hash)
        if not (had_blob or records):
            raise NotFound("No such image.")
        log.info("deleted", records=records)

    def key(self, tenant: str, image_hash: str, model: str = "") -> RecordKey:
        """The key of an image under `model`, or ours. Raises InvalidRequest where malformed."""
        check_hash(image_hash)
        try:
            return RecordKey(tenant, image_hash, model or self.model)
        except ValueError as wrong:
            raise InvalidRequest(f"The parameter {wrong}.", extra={"field": "model"}) from None

    def checks(self) -> dict[str, Check]:
        """What readiness asks."""
        return {
            "records": self.backend.records.ping,
            "blobs": self.backend.blobs.ping,
            "queue": self.backend.publisher.ping,
            "model": self._check_bundle,
        }

    def stop(self, seconds: float) -> None:
        """Let those go who wait for a result, and after `seconds` those who are still sending."""
        self.waiting.stop()
        self.streams.stop()
        self.uploads.stop(seconds)

    async def close(self) -> None:
        """Finish what was begun, unless it takes too long: nobody was promised anything yet."""
        self.waiting.stop()
        self.streams.stop()
        try:
            await asyncio.wait_for(self._submissions.close(), CLOSE_SECONDS)
        except TimeoutError:
            log.error("uploads left unfinished")

    def _represent(self, record: Record) -> Representation:
        result = represent(record, self.settings.public_url)
        self._cache.put(record.key, result)
        return result

    async def _check_bundle(self) -> None:
        # Where it lies here: what came from a bucket is ours since the start, whatever becomes of
        # the bucket.
        bundle = await asyncio.to_thread(read_bundle, self._bundle.folder)
        if bundle.identity != self.model:
            raise Unavailable(
                f"The bundle is now {bundle.identity}, this process serves {self.model}: restart."
            )


def service_in(app: FastAPI) -> ImageService:
    """The service that the application's lifespan opened."""
    service: ImageService = app.state.service
    return service


def service_of(request: Request) -> ImageService:
    """The service of the application that serves `request`."""
    return service_in(request.app)


def check_hash(image_hash: str) -> None:
    """Raise InvalidRequest unless `image_hash` is SHA-256 in lower-case hex."""
    if not IMAGE_HASH.fullmatch(image_hash):
        raise InvalidRequest(
            "An image hash is the SHA-256 of the image's bytes: 64 hex digits in lower case.",
            extra={"field": "image_hash"},
        )
