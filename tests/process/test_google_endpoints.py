"""A missing bucket, as the storage emulator reports it."""

import os
from pathlib import Path
from typing import Any

import pytest

from core.backends.google.blobs import CloudBlobStore
from core.backends.google.endpoints import (
    Endpoints,
    open_endpoints,
)
from core.clock import utc_now
from core.errors import NotFound, Unavailable
from tests.support.settings import isolated_settings

NAME = f"public/{'a' * 64}"


async def test_a_missing_bucket_is_not_a_missing_image(
    tmp_path: Path, emulator_addresses: dict[str, str]
) -> None:
    """Otherwise a wrong setting would end every image as `image_missing`."""
    values: dict[str, Any] = {k.lower(): v for k, v in emulator_addresses.items()}
    settings = isolated_settings(backend="emulator", data_dir=tmp_path, **values)
    endpoints: Endpoints = await open_endpoints(settings, utc_now)
    blobs = CloudBlobStore(endpoints.storage_client(), f"none-{os.getpid()}", endpoints.links)
    try:
        with pytest.raises(Unavailable):
            await blobs.ping()
        with pytest.raises(Unavailable):
            await blobs.get(NAME)
        with pytest.raises(NotFound):
            await blobs.get("public/nonsense")
    finally:
        await blobs.close()
