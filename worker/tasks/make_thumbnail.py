"""Store thumbnails: of images that a worker classifies, and of images that have none yet."""

import structlog

from core.domain.messages import MakeThumbnail
from core.domain.records import NO_THUMBNAIL, RecordKey, blob_name, thumbnail_name
from core.errors import GlimpseError, InvalidImage, NotFound
from core.ports import BlobStore
from worker.context import WorkerContext
from worker.errors import ClassifierLost
from worker.tasks.image_reader import reading

log = structlog.get_logger(__name__)

WEBP = "image/webp"


async def make_thumbnail(message: MakeThumbnail, ctx: WorkerContext) -> None:
    """Make the thumbnail of an image that has none. Return means: acknowledge the message.

    The default model classifies the image again, because the processes that decode images do
    nothing else; the labels are not stored. An image that cannot be decoded gets `NO_THUMBNAIL`.
    Raises Unavailable, ModelUnavailable and InferenceFailed to ask for another delivery.
    """
    blobs = ctx.backend.blobs
    if not ctx.settings.makes_thumbnails or await blobs.exists(
        thumbnail_name(message.tenant, message.image_hash)
    ):
        return
    await ctx.models.check()
    key = RecordKey(message.tenant, message.image_hash, ctx.models.identities[0])
    classifier = await ctx.models.classifier(key.model)
    async with ctx.slots.slot(message.priority), reading(key, blobs) as image:
        try:
            thumbnail = (await classifier.classify(await image)).thumbnail
        except NotFound:
            log.info("image without thumbnail was deleted")
            return
        except (InvalidImage, ClassifierLost) as error:
            log.info("no thumbnail", code=error.code)
            thumbnail = NO_THUMBNAIL
    if thumbnail:
        await store_thumbnail(key, thumbnail, blobs)


async def keep_thumbnail(key: RecordKey, thumbnail: bytes, blobs: BlobStore) -> None:
    """Store the thumbnail of a classified image. A failure is logged: it is made on demand."""
    try:
        await store_thumbnail(key, thumbnail, blobs)
    except GlimpseError as error:
        log.warning("thumbnail not stored", reason=error.detail)


async def store_thumbnail(key: RecordKey, thumbnail: bytes, blobs: BlobStore) -> None:
    """Store the thumbnail unless the image is deleted. Raises Unavailable."""
    name = thumbnail_name(key.tenant, key.image_hash)
    await blobs.put(name, thumbnail, WEBP)
    # A deletion deletes the image first and its thumbnail then. If that was before the put, the
    # image is gone by now.
    if not await blobs.exists(blob_name(key.tenant, key.image_hash)):
        await blobs.delete(name)
