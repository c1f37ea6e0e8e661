"""Blobs in Cloud Storage: `{tenant}/{image_hash}` in one private bucket.

Google's client blocks, so it runs in a bounded pool of threads that has as many connections. The
limits below hold for each call; whatever happens, a caller has an answer after `PATIENCE` seconds.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from google.api_core.exceptions import NotFound as VendorNotFound
from google.api_core.exceptions import PreconditionFailed
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from core.backends.google.errors import translated
from core.domain.records import IMAGE_HASH, TENANT
from core.errors import NotFound, Unavailable

T = TypeVar("T")

PART = "image storage"
MISSING = "There is no such image."
THREADS = 16
TIMEOUT = (2.0, 5.0)  # seconds to connect, and between bytes, of one try
RETRY = DEFAULT_RETRY.with_delay(0.1, 1.0, 2.0).with_timeout(3.0)
PATIENCE = 8.0  # seconds for a call in all, waiting for a thread included
CHECKSUM = "crc32c"  # computed here and there, for every upload and download


class Links(Protocol):
    """Who makes signed links."""

    async def url(self, name: str, expires_in: timedelta) -> str: ...

    async def close(self) -> None: ...


class CloudBlobStore:
    """`core.ports.BlobStore` on one bucket."""

    def __init__(self, client: storage.Client, bucket: str, links: Links) -> None:
        self._client = client
        self._bucket = client.bucket(bucket)
        self._links = links
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")
        self._closed = False

    async def put(self, name: str, data: bytes | bytearray, content_type: str) -> None:
        """Store `data`; nothing happens where it already is, as the name is its hash."""
        await self._run(lambda: self._put(_checked(name), data, content_type))

    async def get(self, name: str) -> bytes:
        return await self._run(lambda: self._get(_checked(name)))

    def file(self, name: str) -> Path | None:
        return None

    async def exists(self, name: str) -> bool:
        blob = self._bucket.blob(_checked(name))
        return await self._run(lambda: bool(blob.exists(timeout=TIMEOUT, retry=RETRY)))

    async def delete(self, name: str) -> bool:
        return await self._run(lambda: self._delete(_checked(name)))

    async def signed_url(self, name: str, expires_in: timedelta) -> str:
        return await self._links.url(_checked(name), expires_in)

    async def ping(self) -> None:
        await self._run(self._check)

    async def close(self) -> None:
        self._closed = True
        await self._links.close()
        # What still runs ends within its own time limits.
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        self._client.close()

    def _put(self, name: str, data: bytes | bytearray, content_type: str) -> None:
        try:
            self._bucket.blob(name).upload_from_string(
                bytes(data),  # here, so that no more copies exist than threads
                content_type=content_type,
                if_generation_match=0,  # create, never replace; it also makes a retry safe
                checksum=CHECKSUM,
                timeout=TIMEOUT,
                retry=RETRY,
            )
        except PreconditionFailed:
            return  # the same bytes are there

    def _get(self, name: str) -> bytes:
        try:
            data: bytes = self._bucket.blob(name).download_as_bytes(
                checksum=CHECKSUM, timeout=TIMEOUT, retry=RETRY
            )
        except VendorNotFound:
            # A missing bucket looks the same, and is no reason to give an image up.
            self._check()
            raise NotFound(MISSING) from None
        return data

    def _delete(self, name: str) -> bool:
        try:
            self._bucket.blob(name).delete(timeout=TIMEOUT, retry=RETRY)
        except VendorNotFound:
            return False
        return True

    def _check(self) -> None:
        """Listing nothing: it needs no right that reading images does not."""
        found = self._client.list_blobs(
            self._bucket, prefix=".", max_results=1, timeout=TIMEOUT, retry=RETRY
        )
        next(iter(found), None)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise Unavailable("The image storage is closed.")
        loop = asyncio.get_running_loop()
        with translated(PART):
            async with asyncio.timeout(PATIENCE):
                return await loop.run_in_executor(self._threads, work)


def _checked(name: str) -> str:
    """`name`, or NotFound where no blob can have it."""
    tenant, _, image_hash = name.partition("/")
    if not (TENANT.fullmatch(tenant) and IMAGE_HASH.fullmatch(image_hash)):
        raise NotFound(MISSING)
    return name
