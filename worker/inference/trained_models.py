"""Trained models in the worker: their heads, as files for the classifier processes."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from cachetools import LRUCache

from core.domain.records import Classification, head_name
from core.errors import BundleError, ModelUnavailable, NotFound
from core.ports import BlobStore
from worker.inference.head_file import identity_of_head, unpack_head
from worker.inference.pool import RemoteClassifier
from worker.inference.steps import Step

log = structlog.get_logger(__name__)

MAX_HEADS = 256  # files; a head of ten labels has 50 kB


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """A version of a trained model. `base` is the identity of its base model, `path` a file."""

    id: str
    base: str
    path: Path


class TrainedModels:
    """The heads that this process has in `folder`. The least recently used one is deleted first."""

    def __init__(self, blobs: BlobStore, folder: Path, capacity: int = MAX_HEADS) -> None:
        self._blobs = blobs
        self._folder = folder
        self._capacity = capacity
        self._heads: LRUCache[tuple[str, str], TrainedHead] = LRUCache(capacity)

    async def find(self, tenant: str, model: str) -> TrainedHead | None:
        """The tenant's version with this identity, or None if there is none.

        Raises ModelUnavailable if this release cannot read it, and Unavailable.
        """
        found = self._heads.get((tenant, model))
        if found is not None:
            return found
        try:
            data = await self._blobs.get(head_name(tenant, model))
        except NotFound:
            return None
        try:
            if identity_of_head(model.partition("@")[0], data) != model:
                raise BundleError("The head is damaged.")
            header, _ = unpack_head(data)
        except BundleError as error:
            log.error("head refused", model=model, tenant=tenant, reason=error.detail)
            raise ModelUnavailable(f"The model {model} could not be loaded.") from error
        # The name has no tenant: equal heads of two tenants are one file.
        path = self._folder / model
        await asyncio.to_thread(path.write_bytes, data)
        if len(self._heads) >= self._capacity:
            _, oldest = self._heads.popitem()
            if all(each.path != oldest.path for each in self._heads.values()):
                with suppress(FileNotFoundError):
                    await asyncio.to_thread(oldest.path.unlink)
        head = self._heads[tenant, model] = TrainedHead(model, header.base, path)
        log.info("head loaded", model=model, tenant=tenant, base=header.base)
        return head


@dataclass(frozen=True, slots=True)
class TrainedClassifier:
    """A trained model for one image.

    `embedding` gives the image's embedding, stored or computed from the image's bytes.
    """

    head: TrainedHead
    base: RemoteClassifier
    embedding: Callable[[Awaitable[bytes | Path], list[Step]], Awaitable[bytes]]

    async def classify(self, image: Awaitable[bytes | Path], steps: list[Step]) -> Classification:
        """The most likely labels. `image` is only awaited if its embedding is not stored.

        Raises the errors of `RemoteClassifier.classify`.
        """
        embedding = await self.embedding(image, steps)
        return await self.base.classify_embedding(self.head.id, self.head.path, embedding, steps)
