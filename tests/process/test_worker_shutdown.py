"""SIGTERM to a real worker process: it finishes claimed images, and releases the others."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from core.backends import Backend, open_backend
from core.bundles.bundle import read_bundle
from core.clock import utc_now
from core.domain.records import RecordKey, Status, new_record
from core.settings import Settings
from tests.support.bundles import write_slow_bundle
from tests.support.pictures import picture, sha256
from tests.support.plain_http import NO_TLS
from tests.support.process import with_constants
from tests.support.records import claimed
from tests.support.scripted_worker import until
from tests.support.settings import isolated_settings
from tests.support.stack import free_port
from tests.support.worker import envelope, push_headers, settings_in

WHITE = picture(7, (250, 250, 250))
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Process:
    """`python -m worker`, a client of it, and a second opening of its backend."""

    popen: "subprocess.Popen[bytes]"
    client: httpx.AsyncClient
    backend: Backend
    key: RecordKey

    async def ready(self) -> bool:
        assert self.popen.poll() is None, "the worker ended by itself"
        try:
            return (await self.client.get("/ready")).status_code == 200
        except httpx.TransportError:
            return False

    async def running(self) -> bool:
        record = await self.backend.records.get(self.key)
        return record is not None and record.status is Status.RUNNING

    async def gone(self) -> bool:
        return self.popen.poll() is not None

    async def push(self) -> int:
        """The status of the response, or 0 if the connection broke."""
        try:
            answer = await self.client.post("/generate_annotations", content=envelope(self.key))
        except httpx.TransportError:
            return 0
        return answer.status_code


@asynccontextmanager
async def started(tmp_path: Path, rounds: int, shutdown_seconds: float) -> AsyncIterator[Process]:
    bundle = write_slow_bundle(tmp_path / "slow", rounds)
    port = free_port()
    settings: Settings = settings_in(tmp_path, model_uri=str(bundle))
    environment = {
        **os.environ,
        "DATA_DIR": str(settings.data_dir),
        "MODEL_URI": str(bundle),
        "WORKER_PORT": str(port),
        "LEASE_SECONDS": "600",
        **with_constants(SHUTDOWN_SECONDS=shutdown_seconds),
        "PYTHONPATH": str(ROOT),
    }
    async with open_backend(settings) as backend:
        key = RecordKey("public", sha256(WHITE), read_bundle(bundle).identity)
        await backend.records.create(new_record(key, utc_now()))
        await backend.blobs.put(key.blob_name, WHITE, "image/jpeg")
        command = [sys.executable, "-m", "tests.support.process", "worker"]
        popen = subprocess.Popen(command, env=environment, cwd=tmp_path)  # noqa: ASYNC220 - at once
        try:
            base = f"http://127.0.0.1:{port}"
            headers = push_headers(settings)
            async with httpx.AsyncClient(
                base_url=base, headers=headers, timeout=100, verify=NO_TLS
            ) as client:
                process = Process(popen, client, backend, key)
                await until(process.ready)
                yield process
        finally:
            popen.kill()
            popen.wait()


async def test_claimed_image_is_finished_before_shutdown(tmp_path: Path) -> None:
    async with started(tmp_path, rounds=800, shutdown_seconds=60) as process:
        pushing = asyncio.create_task(process.push())
        await until(process.running)
        process.popen.send_signal(signal.SIGTERM)
        assert await pushing == 204
        await until(process.gone)
        record = await process.backend.records.get(process.key)
        assert record is not None
        assert (record.status, record.attempts) == (Status.SUCCESS, 1)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_inference_that_cannot_finish_is_released(
    tmp_path: Path, stop: signal.Signals
) -> None:
    """The inference would take hours. Neither the lease nor the process may last that long."""
    async with started(tmp_path, rounds=10**7, shutdown_seconds=1) as process:
        pushing = asyncio.create_task(process.push())
        await until(process.running)
        process.popen.send_signal(stop)
        await until(process.gone)
        assert await pushing == 503
        record = await process.backend.records.get(process.key)
        assert record is not None
        assert record.status is Status.RUNNING
        assert not record.leased(utc_now())
        claim = await claimed(process.backend.records, process.key, isolated_settings().lease)
        assert claim is not None
        assert claim.attempt == 2


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_worker_stops_and_lets_the_port_go(
    tmp_path: Path, stop: signal.Signals
) -> None:
    async with started(tmp_path, rounds=1, shutdown_seconds=60) as process:
        assert await process.push() == 204
        process.popen.send_signal(stop)
        await until(process.gone)
        assert process.popen.returncode in (0, -stop, 128 + stop)
        assert not await _accepts(process.client)


async def _accepts(client: httpx.AsyncClient) -> bool:
    try:
        await client.get("/health")
    except httpx.ConnectError:
        return False
    return True
