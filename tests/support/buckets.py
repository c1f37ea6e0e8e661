"""Buckets on the storage emulator, like those of an operator."""

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from core.settings import Settings


async def fill(settings: Settings, bucket: str, objects: Mapping[str, bytes]) -> None:
    """Store these objects, and create the bucket if it does not exist."""
    await asyncio.to_thread(_fill, settings, bucket, objects)


async def remove(settings: Settings, bucket: str, name: str) -> None:
    await asyncio.to_thread(lambda: _client(settings).bucket(bucket).blob(name).delete())


async def fill_bundle(
    settings: Settings, bucket: str, folder: str, bundle: Path, without: Collection[str] = ()
) -> str:
    """Upload a bundle, as `gcloud storage cp -r` does. Returns its URI."""
    files = {path.name: path.read_bytes() for path in bundle.iterdir()}  # noqa: ASYNC240 - a few
    objects = {f"{folder}/{name}": data for name, data in files.items() if name not in without}
    await fill(settings, bucket, objects)
    return f"gs://{bucket}/{folder}"


def _fill(settings: Settings, bucket: str, objects: Mapping[str, bytes]) -> None:
    client = _client(settings)
    there = client.lookup_bucket(bucket) or client.create_bucket(bucket)
    for name, data in objects.items():
        there.blob(name).upload_from_string(data, "application/octet-stream", retry=None)
    client.close()


def _client(settings: Settings) -> storage.Client:
    return storage.Client(
        project="demo",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": settings.storage_emulator_host},
    )
