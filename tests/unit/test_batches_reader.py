"""Batches whose images are in a bucket, read from a scripted source."""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.batches.bucket import BatchSize, ObjectPrefix
from app.batches.reader import BatchReader
from app.uploads import limiter
from app.uploads.limiter import UploadLimiter, UploadLimits
from core.backends import open_backend
from core.errors import Unavailable
from core.ports import StoredObject
from tests.support.api import api_settings
from tests.support.pictures import picture, sha256

BUCKET = ObjectPrefix("photos", "")
IMAGE = picture()


class Clock:
    """Moves when told."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class SlowSource:
    """A bucket of one image; an operation takes 100 seconds of `clock`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def list(self, bucket: str, prefix: str, limit: int) -> Sequence[StoredObject]:
        await self._work()
        return [StoredObject("a.jpg", len(IMAGE))]

    async def read(self, bucket: str, name: str, max_bytes: int) -> bytes:
        await self._work()
        return IMAGE

    async def _work(self) -> None:
        self._clock.seconds += 100
        await asyncio.to_thread(time.sleep, 0.01)  # ten looks of the limiter


async def test_slow_bucket_is_not_taken_for_a_slow_sender(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiter, "CHECK_SECONDS", 0.001)
    clock = Clock()
    limits = UploadLimits(max_bytes=2**30, grace_seconds=60, min_bytes_per_second=10**9)
    embedded = api_settings(tmp_path, colour_bundle)
    importing = embedded.model_copy(update={"backend": "gcp", "import_buckets": ("photos",)})
    embedded.data_dir.mkdir()
    async with open_backend(embedded) as backend:
        batches = BatchReader(importing, dataclasses.replace(backend, objects=SlowSource(clock)))
        with UploadLimiter(limits, clock).slot() as slot:
            (image,) = await batches.fetch(BUCKET, BatchSize(), "public", slot)
        assert (image.image_hash, image.error) == (sha256(IMAGE), None)
        assert await backend.blobs.get(f"public/{sha256(IMAGE)}") == IMAGE


class HangingSource(SlowSource):
    async def read(self, bucket: str, name: str, max_bytes: int) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_stop_ends_reading_from_a_bucket(tmp_path: Path, colour_bundle: Path) -> None:
    clock = Clock()
    limits = UploadLimits(max_bytes=2**30, grace_seconds=60, min_bytes_per_second=10**9)
    embedded = api_settings(tmp_path, colour_bundle)
    importing = embedded.model_copy(update={"backend": "gcp", "import_buckets": ("photos",)})
    embedded.data_dir.mkdir()
    async with open_backend(embedded) as backend:
        batches = BatchReader(importing, dataclasses.replace(backend, objects=HangingSource(clock)))
        slots = UploadLimiter(limits, clock)
        slots.stop(0.05)
        with pytest.raises(Unavailable, match="shutting down"), slots.slot() as slot:
            await batches.fetch(BUCKET, BatchSize(), "public", slot)
    assert (slots.in_flight, slots.bytes_reserved) == (0, 0)
