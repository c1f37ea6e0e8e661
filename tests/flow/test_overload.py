"""More slow clients than upload slots: memory is bounded, and no client hangs."""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.pictures import picture
from tests.support.plain_http import NO_TLS
from tests.support.slow_clients import IMAGE, TIMEOUT
from tests.support.stack import ROOT, Stack

CLIENTS = 500
SECONDS = 15.0  # longer than the grace period of slow uploads
ROOM = 96 * 2**20
# The process at its start, plus sockets and buffers of each upload, plus the limit for uploads.
BOUND = ROOM * 9 // 8 + 160 * 2**20 + 256 * 300 * 2**10


async def fast_clients(base: str, ends: float, outcomes: Counter[int]) -> None:
    """Small uploads over separate connections. Raises without a response."""
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(
        base_url=base, timeout=TIMEOUT, limits=limits, verify=NO_TLS
    ) as client:
        seed = 0
        while time.monotonic() < ends:
            seed += 1
            answer = await client.post("/what/fast", files={"img": picture(seed, size=(48, 48))})
            outcomes[answer.status_code] += 1
            if answer.status_code == 503:
                assert answer.json()["code"] == "overloaded"
                assert int(answer.headers["retry-after"]) >= 1
            await asyncio.sleep(0.1)


async def health(base: str, ends: float, times: list[float]) -> None:
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(
        base_url=base, timeout=TIMEOUT, limits=limits, verify=NO_TLS
    ) as client:
        while time.monotonic() < ends:
            began = time.perf_counter()
            assert (await client.get("/health")).status_code == 204
            times.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)


async def watch(process: psutil.Process, ends: float, sizes: list[int]) -> None:
    while time.monotonic() < ends:
        sizes.append(process.memory_info().rss)
        await asyncio.sleep(0.05)


@pytest.mark.timeout(180)
async def test_500_slow_clients_with_10_mib_each_do_not_grow_memory(
    tmp_path: Path, colour_bundle: Path
) -> None:
    stack = Stack(
        tmp_path,
        colour_bundle,
        MAX_UPLOAD_BYTES_IN_FLIGHT=ROOM,
        LOG_LEVEL="error",
    )
    stack.names = ["api"]
    with stack:
        base = f"http://127.0.0.1:{stack.api_port}"
        process = psutil.Process(stack.processes["api"].pid)
        at_start = process.memory_info().rss
        fast: Counter[int] = Counter()
        times: list[float] = []
        sizes = [at_start]
        crowd = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.slow_clients",
            *map(str, (stack.api_port, CLIENTS, SECONDS)),
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        ends = time.monotonic() + SECONDS
        await asyncio.gather(
            fast_clients(base, ends, fast),
            health(base, ends, times),
            watch(process, ends, sizes),
        )
        output, _ = await crowd.communicate()
        slow = json.loads(output)
        # Afterwards it serves as before, when it has seen that five hundred clients disconnected.
        async with httpx.AsyncClient(base_url=base, timeout=TIMEOUT, verify=NO_TLS) as client:
            ends = time.monotonic() + TIMEOUT
            answer = await client.post("/what/fast", files={"img": picture(10**6)})
            while answer.status_code == 503 and time.monotonic() < ends:
                await asyncio.sleep(0.2)
                answer = await client.post("/what/fast", files={"img": picture(10**6)})
        after = process.memory_info().rss
    times.sort()
    print(
        f"\n{CLIENTS} slow clients of {IMAGE >> 20} MiB for {SECONDS:g} s; room {ROOM >> 20} MiB\n"
        f"memory: start {at_start >> 20}, peak {max(sizes) >> 20}, after {after >> 20} MiB"
        f" (bound {BOUND >> 20})\n"
        f"slow clients' ends: {slow}\nfast uploads: {dict(fast)}\n"
        f"/health: {len(times)} answers, p50 {1000 * times[len(times) // 2]:.1f} ms,"
        f" longest {1000 * times[-1]:.0f} ms"
    )
    assert max(sizes) < BOUND
    assert set(fast) <= {200, 202, 503}
    assert times
    assert set(slow) <= {"408", "503", "still sending", "reset"}
    assert {"408", "503"} <= set(slow)
    assert answer.status_code == 202
