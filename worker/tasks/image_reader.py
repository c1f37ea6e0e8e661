"""Reading the bytes of an image while the worker does something else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from core.domain.records import RecordKey
from core.observability.tracing import span
from core.ports import BlobStore


@asynccontextmanager
async def reading(
    key: RecordKey, blobs: BlobStore, *, lazy: bool = False
) -> AsyncIterator[Awaitable[bytes | Path]]:
    """Read the image's bytes during the claim, because the store grants most claims.

    If blobs are local files, gives the path: the classifier process reads the file itself. With
    `lazy`, the bytes are read when they are awaited, because they may not be needed.
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

    if lazy:
        yield _LazyRead(read)
        return
    image = asyncio.ensure_future(read())
    try:
        yield image
    finally:
        image.cancel()  # if the claim was refused; this also drops the error of a failed read


class _LazyRead(Awaitable[bytes | Path]):
    """Starts to read when it is awaited."""

    def __init__(self, read: Callable[[], Awaitable[bytes | Path]]) -> None:
        self._read = read

    def __await__(self) -> Generator[Any, None, bytes | Path]:
        return self._read().__await__()
