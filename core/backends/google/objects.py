"""Objects of other buckets, which the operator lets clients import: listed and read, no more.

As `blobs`, with threads and connections of its own: whoever imports a thousand images must not keep
those waiting who ask for one.
"""

import asyncio
import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from google.cloud import storage

from core.backends.google.blobs import CHECKSUM, RETRY, TIMEOUT
from core.backends.google.errors import translated
from core.errors import Unavailable
from core.ports import StoredObject

T = TypeVar("T")

PART = "import bucket"
THREADS = 8
PATIENCE = 30.0  # seconds for a call in all, waiting for a thread included
PAGE = 1000  # names in one answer, the most that there are
MISSING_BUCKET = "There is no such bucket."
MISSING_OBJECT = "There is no such object any more."


class CloudObjectSource:
    """`core.ports.ObjectSource` with the credentials of `client`."""

    def __init__(self, client: storage.Client) -> None:
        self._client = client
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="objects")
        self._closed = False

    async def list(self, bucket: str, prefix: str, limit: int) -> Sequence[StoredObject]:
        return await self._run(
            lambda until: _listed(self._client, bucket, prefix, limit, until), MISSING_BUCKET
        )

    async def read(self, bucket: str, name: str, max_bytes: int) -> bytes:
        return await self._run(
            lambda until: read_object(self._client, bucket, name, max_bytes, until), MISSING_OBJECT
        )

    async def close(self) -> None:
        self._closed = True
        # What still runs ends within its own time limits.
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        self._client.close()

    async def _run(self, work: Callable[[float], T], missing: str) -> T:
        """`work` is told when its time is up, on the monotonic clock."""
        if self._closed:
            raise Unavailable("The import of objects is closed.")
        until = time.monotonic() + PATIENCE
        loop = asyncio.get_running_loop()
        with translated(PART, missing=missing):
            async with asyncio.timeout(PATIENCE):
                return await loop.run_in_executor(self._threads, work, until)


def read_object(
    client: storage.Client, bucket: str, name: str, max_bytes: int, until: float
) -> bytes:
    """An object's bytes, or `max_bytes + 1` of them where it has more. Blocks.

    Raises what Google raises, and TimeoutError after `until` on the monotonic clock.
    """
    data = _Bounded(max_bytes + 1, until)
    with suppress(_Full):
        client.bucket(bucket).blob(name).download_to_file(
            data,
            # As it is stored: what unpacks itself on the way would have no bound.
            raw_download=True,
            checksum=CHECKSUM,
            timeout=TIMEOUT,
            retry=RETRY,
        )
    return data.getvalue()


def _listed(
    client: storage.Client, bucket: str, prefix: str, limit: int, until: float
) -> list[StoredObject]:
    found: list[StoredObject] = []
    pages = client.list_blobs(
        client.bucket(bucket),
        prefix=prefix or None,
        page_size=PAGE,
        fields="items(name,size),nextPageToken",
        timeout=TIMEOUT,
        retry=RETRY,
    ).pages
    for page in pages:
        for blob in page:
            if blob.name.endswith("/"):
                continue
            if len(found) == limit:
                return found
            found.append(StoredObject(blob.name, blob.size or 0))
        _check_time(until)  # there may be any number of folders
    return found


class _Full(Exception):
    """As much has been read as was asked for."""


class _Bounded(io.BytesIO):
    """Takes `most` bytes and raises _Full with the last; TimeoutError once the time is up."""

    def __init__(self, most: int, until: float) -> None:
        super().__init__()
        self._most, self._until = most, until

    def write(self, data: "bytes | memoryview", /) -> int:  # type: ignore[override]
        room = self._most - self.tell()
        super().write(data[:room])
        if len(data) >= room:
            raise _Full
        _check_time(self._until)
        return len(data)


def _check_time(until: float) -> None:
    if time.monotonic() > until:
        raise TimeoutError("the time is up")
