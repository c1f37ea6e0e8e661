"""Reading the bytes of an image while the worker does something else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

from core.domain.records import RecordKey
from core.observability.tracing import span
from core.ports import BlobStore


@asynccontextmanager
async def reading(key: RecordKey, blobs: BlobStore) -> AsyncIterator[Awaitable[bytes | Path]]:
    """Read the image's bytes during the claim, because the store grants most claims.

    If blobs are local files, gives the path: the classifier process reads the file itself.
    """
    file = blobs.file(key.blob_name)
    if file is not None:
        local: asyncio.Future[bytes | Path] = asyncio.get_running_loop().create_future()
        local.set_result(file)
        yield local
        return

    async def read() -> bytes | Path:
        with span("read image"):
            return await blobs.get(key.blob_name)

    image = asyncio.ensure_future(read())
    try:
        yield image
    finally:
        image.cancel()  # if the claim was refused; this also drops the error of a failed read
