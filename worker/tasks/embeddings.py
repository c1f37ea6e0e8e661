"""The embeddings of a tenant's images under a base model: stored, or computed and then stored."""

from collections.abc import Awaitable
from pathlib import Path

from core.domain.records import RecordKey, embedding_name
from core.errors import NotFound
from core.observability.tracing import span
from worker.context import WorkerContext
from worker.inference.pool import RemoteClassifier
from worker.inference.steps import Step

MEDIA_TYPE = "application/octet-stream"


async def embedding_of(
    key: RecordKey,
    base: RemoteClassifier,
    ctx: WorkerContext,
    image: Awaitable[bytes | Path],
    steps: list[Step],
) -> bytes:
    """The image's embedding, as float32 in little-endian; `key` names the base model.

    `image` is awaited only if no embedding is stored. Raises NotFound if the image is deleted, and
    the errors of `RemoteClassifier.embed`.
    """
    blobs, name = ctx.backend.blobs, embedding_name(key.tenant, key.model, key.image_hash)
    try:
        return await blobs.get(name)
    except NotFound:
        pass
    embedding = await base.embed(await image, steps)
    with span("store embedding"):
        await blobs.put(name, embedding, MEDIA_TYPE)
        # A deletion of the image may have looked for the embedding before it was stored.
        if not await blobs.exists(key.blob_name):
            await blobs.delete(name)
            raise NotFound("The image was deleted.")
    return embedding
