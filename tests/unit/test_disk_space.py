"""A full disk is visible, and needs no restart."""

import errno
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from core.backends import Backend, open_backend
from core.backends.embedded.blobs import FileBlobStore
from core.backends.embedded.database import translated
from core.clock import Clock
from core.disk_space import RESERVE, free_bytes
from core.errors import DiskFull, Unavailable
from core.settings import Settings
from tests.support.api import NOTHING, Api, api_settings, open_api
from tests.support.metrics import samples
from tests.support.pictures import picture
from tests.support.problems import assert_problem
from tests.support.worker import RunningWorker, running_worker, settings_in


@dataclass
class Disk:
    """The free space that a backend sees."""

    free: int

    @asynccontextmanager
    async def opener(self, settings: Settings, clock: Clock) -> AsyncIterator[Backend]:
        async with open_backend(settings, clock) as backend:
            links = backend.links
            assert links is not None
            blobs = FileBlobStore(
                settings.data_dir / "blobs", links, clock, free=lambda folder: self.free
            )
            yield replace(backend, blobs=blobs)
            await blobs.close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr("core.http.health.KEEP_FAILURE_SECONDS", 0.0)
    return Disk(RESERVE - 1)


@pytest.fixture
async def api(tmp_path: Path, colour_bundle: Path, disk: Disk) -> AsyncIterator[Api]:
    async with open_api(api_settings(tmp_path, colour_bundle), opener=disk.opener) as api:
        yield api


@pytest.fixture
async def worker(tmp_path: Path, disk: Disk) -> AsyncIterator[RunningWorker]:
    async with running_worker(settings_in(tmp_path), opener=disk.opener) as running:
        yield running


async def test_full_disk_makes_the_api_not_ready_until_there_is_space(api: Api, disk: Disk) -> None:
    problem = assert_problem(await api.client.get("/ready"), 503, "not_ready")
    assert problem["checks"]["blobs"].startswith("disk full")
    assert (await api.client.get("/health")).status_code == 204
    disk.free = RESERVE
    assert (await api.client.get("/ready")).status_code == 200


async def test_full_disk_makes_the_worker_not_ready(worker: RunningWorker, disk: Disk) -> None:
    problem = assert_problem(await worker.client.get("/ready"), 503, "not_ready")
    assert problem["checks"]["blobs"].startswith("disk full")
    disk.free = RESERVE
    assert (await worker.client.get("/ready")).status_code == 200


@pytest.mark.parametrize("path", ["/api/v1/images", "/what/fast"])
async def test_upload_is_refused_until_there_is_space(api: Api, disk: Disk, path: str) -> None:
    image = picture()
    upload = {"files": {"img": image}} if path == "/what/fast" else {"content": image}
    disk.free = RESERVE + len(image) - 1  # the image does not fit
    refused = await api.client.post(path, **upload)
    problem = assert_problem(refused, 503, "disk_full")
    assert problem["detail"].startswith("disk full")
    assert int(refused.headers["retry-after"]) >= 10
    assert api.traces().blobs == NOTHING.blobs
    assert api.messages() == []
    disk.free += 1
    assert (await api.client.post(path, **upload)).status_code == 202


async def test_free_space_is_a_metric(api: Api, disk: Disk) -> None:
    disk.free = 123_456_789
    found = samples((await api.client.get("/metrics")).text)
    assert found["glimpse_disk_free_bytes"] == 123_456_789


async def test_free_space_is_that_of_the_folder(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    assert abs(free_bytes(tmp_path) - found.f_bavail * found.f_frsize) < 2**30


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_system_error_of_a_full_disk_is_named(tmp_path: Path, number: int) -> None:
    assert isinstance(translated(OSError(number, "x"), tmp_path / "records.db"), DiskFull)
    other = translated(OSError(errno.EIO, "x"), tmp_path / "records.db")
    assert isinstance(other, Unavailable) and not isinstance(other, DiskFull)


def test_sqlite_error_of_a_full_disk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA max_page_count = 3")
    connection.execute("CREATE TABLE t (x)")
    with pytest.raises(sqlite3.OperationalError) as full:
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    connection.close()
    assert isinstance(translated(full.value, path), DiskFull)
