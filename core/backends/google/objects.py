"""Objects of buckets that the operator allows clients to import from: lists and reads them.

Its threads and connections are its own, so that an import of a thousand images does not delay
requests for single images.
"""

import io
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from google.cloud import storage

from core.backends.google.blobs import CHECKSUM, RETRY, TIMEOUT
from core.backends.google.blocking_calls import BlockingCalls
from core.ports import StoredObject

T = TypeVar("T")

THREADS = 8
DEADLINE = 30.0  # seconds for a call, including the wait for a thread
PAGE = 1000  # names in one response, the largest page that the API allows
MISSING_BUCKET = "There is no such bucket."
MISSING_OBJECT = "There is no such object any more."


class CloudObjectSource:
    """`core.ports.ObjectSource` with the credentials of `client`."""

    def __init__(self, client: storage.Client) -> None:
        self._client = client
        self._seconds = DEADLINE
        self._calls = BlockingCalls("import bucket", THREADS, self._seconds)

    async def list(self, bucket: str, prefix: str, limit: int) -> Sequence[StoredObject]:
        return await self._run(
            lambda until: _list_objects(self._client, bucket, prefix, limit, until), MISSING_BUCKET
        )

    async def read(self, bucket: str, name: str, max_bytes: int) -> bytes:
        return await self._run(
            lambda until: read_object(self._client, bucket, name, max_bytes, until), MISSING_OBJECT
        )

    async def close(self) -> None:
        await self._calls.close()
        self._client.close()

    async def _run(self, work: Callable[[float], T], missing: str) -> T:
        """Call `work` with the time, on the monotonic clock, at which it must end."""
        until = time.monotonic() + self._seconds
        return await self._calls.run(lambda: work(until), missing=missing)


def read_object(
    client: storage.Client, bucket: str, name: str, max_bytes: int, until: float
) -> bytes:
    """An object's bytes, or the first `max_bytes + 1` of a larger object. Blocks.

    Raises what Google's client raises, and TimeoutError after `until` on the monotonic clock.
    """
    data = _BoundedBuffer(max_bytes + 1, until)
    with suppress(_Full):
        client.bucket(bucket).blob(name).download_to_file(
            data,
            # The bytes as they are stored: decompressed on the way, they would have no bound.
            raw_download=True,
            checksum=CHECKSUM,
            timeout=TIMEOUT,
            retry=RETRY,
        )
    return data.getvalue()


def _list_objects(
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
            if blob.name.endswith("/"):  # a placeholder for a folder
                continue
            if len(found) == limit:
                return found
            found.append(StoredObject(blob.name, blob.size or 0))
        _check_time(until)  # pages of placeholders alone may go on without end
    return found


class _Full(Exception):
    """The buffer has as many bytes as it may hold."""


class _BoundedBuffer(io.BytesIO):
    """Holds `most` bytes. Raises _Full with the last one, TimeoutError after `until`."""

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
        raise TimeoutError("the deadline has passed")
