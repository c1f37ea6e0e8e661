"""Embed the images of a training job, and publish its fit when all are embedded.

An embedding is a blob, named by the image and the base model. Whether it exists is the only state,
so several deliveries may compute it at the same time and store the same one. The last item of the
job is the fit: each delivery that completes an item checks whether it is the only one left.
"""

from collections.abc import Sequence
from functools import partial

import structlog

from core.concurrency import for_each
from core.domain.jobs import ItemState, Job, JobItem, JobKey
from core.domain.messages import EmbedImage, FitModel
from core.domain.records import RecordError, RecordKey, embedding_name
from core.services.job_images import is_over
from core.services.publishing import publish
from worker.context import WorkerContext
from worker.tasks.classify_image import infer
from worker.tasks.embeddings import embedding_of
from worker.tasks.image_reader import reading
from worker.tasks.job_items import complete_item, complete_items

log = structlog.get_logger(__name__)

AT_ONCE = 16  # requests to the blob storage


async def embed_image(message: EmbedImage, ctx: WorkerContext) -> None:
    """Store the image's embedding and complete its item. Return means: acknowledge.

    Does nothing if the job is over. Raises Unavailable, ModelUnavailable and InferenceFailed, which
    ask for another delivery.
    """
    if await is_over(ctx.backend.jobs, JobKey(message.tenant, message.job), ctx.clock()):
        return
    outcome = await ensure_embedding(message.key, message, ctx)
    if isinstance(outcome, RecordError):
        log.warning("image not embedded", code=outcome.code, detail=outcome.detail)
    await complete_embedding(message, outcome, ctx)


async def ensure_embedding(
    key: RecordKey, message: EmbedImage, ctx: WorkerContext
) -> RecordError | None:
    """Store the embedding of the image unless it is stored; the image's error, if any."""
    if await ctx.backend.blobs.exists(embedding_name(key.tenant, key.model, key.image_hash)):
        return None
    # Before the slot: a worker without the model must not take one.
    base = await ctx.models.classifier(key.model)
    async with (
        ctx.slots.slot(message.priority),
        reading(key, ctx.backend.blobs, lazy=True) as image,
    ):
        found = await infer(key, partial(embedding_of, key, base, ctx, image), ctx)
    return found if isinstance(found, RecordError) else None


async def complete_embedding(
    message: EmbedImage, error: RecordError | None, ctx: WorkerContext
) -> None:
    """Complete the item, and publish the fit if no other item is open."""
    key = JobKey(message.tenant, message.job)
    await complete_item(key, message.position, error, ctx)
    job = await ctx.backend.jobs.get(key)
    if job is not None and not job.over(ctx.clock()):
        await fit_when_embedded(job, ctx)


async def publish_embeddings(items: Sequence[JobItem], job: Job, ctx: WorkerContext) -> int:
    """Publish a message for each image without an embedding. Returns the number of messages.

    Completes the items of the others.
    """
    images = [item for item in items if item.position != job.fit_position]
    blobs = ctx.backend.blobs

    async def is_embedded(item: JobItem) -> bool:
        return await blobs.exists(embedding_name(job.key.tenant, job.model, item.image_hash))

    embedded = await for_each(images, is_embedded, AT_ONCE)
    there = [item.position for item, exists in zip(images, embedded, strict=True) if exists]
    await complete_items(job.key, dict.fromkeys(there), ctx)
    missing = [item for item, exists in zip(images, embedded, strict=True) if not exists]

    async def request(item: JobItem) -> str:
        key = RecordKey(job.key.tenant, item.image_hash, job.model)
        message = EmbedImage(key, job.key.id, item.position, job.priority)
        return await publish(ctx.backend.publisher, message)

    await for_each(missing, request, AT_ONCE)
    return len(missing)


async def fit_when_embedded(job: Job, ctx: WorkerContext) -> None:
    """Publish the job's fit if that is the only open item.

    Several callers may publish it: a repeated fit changes nothing.
    """
    first = await ctx.backend.jobs.items(job.key, 1, state=ItemState.OPEN)
    if [item.position for item in first] == [job.fit_position]:
        await publish(ctx.backend.publisher, FitModel(job.key.tenant, job.key.id))
