"""Blobs in Cloud Storage: `{tenant}/{image_hash}` in one private bucket.

Google's client blocks, so it runs in threads, and has as many connections as threads. `TIMEOUT` and
`RETRY` bound each request. `DEADLINE` bounds what a caller waits.
"""

from datetime import timedelta
from pathlib import Path
from typing import Protocol

from google.api_core.exceptions import NotFound as VendorNotFound
from google.api_core.exceptions import PreconditionFailed
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from core.backends.blob_names import MISSING, split_name
from core.backends.google.blocking_calls import BlockingCalls
from core.errors import NotFound

THREADS = 16
TIMEOUT = (2.0, 5.0)  # seconds to connect, and between bytes, of one try
RETRY = DEFAULT_RETRY.with_delay(0.1, 1.0, 2.0).with_timeout(3.0)
DEADLINE = 8.0  # seconds for a call, including the wait for a thread
CHECKSUM = "crc32c"  # both sides compute it for every upload and download


class Links(Protocol):
    """Signed links to blobs, which expire."""

    async def url(self, name: str, expires_in: timedelta) -> str: ...

    async def close(self) -> None: ...


class CloudBlobStore:
    """`core.ports.BlobStore` on one bucket."""

    def __init__(self, client: storage.Client, bucket: str, links: Links) -> None:
        self._client = client
        self._bucket = client.bucket(bucket)
        self._links = links
        self._calls = BlockingCalls("image storage", THREADS, DEADLINE)

    async def free_bytes(self) -> int | None:
        return None

    async def put(self, name: str, data: bytes | bytearray, content_type: str) -> None:
        """Store `data`. Do nothing if the blob exists: its name is the hash of its bytes."""
        split_name(name)
        await self._calls.run(lambda: self._put(name, data, content_type))

    async def get(self, name: str) -> bytes:
        split_name(name)
        return await self._calls.run(lambda: self._get(name))

    def file(self, name: str) -> Path | None:
        return None

    async def exists(self, name: str) -> bool:
        split_name(name)
        blob = self._bucket.blob(name)
        return await self._calls.run(lambda: bool(blob.exists(timeout=TIMEOUT, retry=RETRY)))

    async def delete(self, name: str) -> bool:
        split_name(name)
        return await self._calls.run(lambda: self._delete(name))

    async def signed_url(self, name: str, expires_in: timedelta) -> str:
        split_name(name)
        return await self._links.url(name, expires_in)

    async def ping(self) -> None:
        await self._calls.run(self._check_bucket)

    async def close(self) -> None:
        await self._calls.close()
        await self._links.close()
        self._client.close()

    def _put(self, name: str, data: bytes | bytearray, content_type: str) -> None:
        try:
            self._bucket.blob(name).upload_from_string(
                bytes(data),  # copied here, so that there are no more copies than threads
                content_type=content_type,
                if_generation_match=0,  # create, never replace; this also makes retries safe
                checksum=CHECKSUM,
                timeout=TIMEOUT,
                retry=RETRY,
            )
        except PreconditionFailed:
            return  # the blob exists, with the same bytes

    def _get(self, name: str) -> bytes:
        try:
            data: bytes = self._bucket.blob(name).download_as_bytes(
                checksum=CHECKSUM, timeout=TIMEOUT, retry=RETRY
            )
        except VendorNotFound:
            # A missing bucket answers 404 as well. It must not end every record as
            # `image_missing`, so it is reported as unavailable.
            self._check_bucket()
            raise NotFound(MISSING) from None
        return data

    def _delete(self, name: str) -> bool:
        try:
            self._bucket.blob(name).delete(timeout=TIMEOUT, retry=RETRY)
        except VendorNotFound:
            return False
        return True

    def _check_bucket(self) -> None:
        """List at most one object, which needs no permission beyond reading images."""
        found = self._client.list_blobs(
            self._bucket, prefix=".", max_results=1, timeout=TIMEOUT, retry=RETRY
        )
        next(iter(found), None)
