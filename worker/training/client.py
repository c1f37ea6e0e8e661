"""Runs a fit in a process of its own, which can be stopped and whose memory is free afterwards.

`worker.training.wire` has the format of what it reads and writes.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import structlog

from core.errors import Unavailable

log = structlog.get_logger(__name__)

FIT_SECONDS = 900.0  # 10,000 images of 100 labels take about a minute
ROOT = Path(__file__).resolve().parents[2]

# Takes what a fit reads, and returns what it writes. Raises Unavailable.
Fit: TypeAlias = Callable[[AsyncIterator[bytes]], Awaitable[bytes]]


async def fit_in_process(chunks: AsyncIterator[bytes]) -> bytes:
    """`Fit` in `worker.training.process`, at a low priority and with one thread.

    A process that fails or takes longer than `FIT_SECONDS` raises Unavailable.
    """
    # More threads would compete with the classifiers, and gain little on matrices of this size.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker.training.process"),
        cwd=ROOT,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        async with asyncio.timeout(FIT_SECONDS):
            try:
                async for chunk in chunks:
                    process.stdin.write(chunk)
                    await process.stdin.drain()
                process.stdin.close()
            except ConnectionError:
                pass  # the process has ended, and its status says so
            output = await process.stdout.read()
            status = await process.wait()
    except TimeoutError:
        raise Unavailable("The fit took too long.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status != 0:
        log.error("fit failed", status=status)
        raise Unavailable("The process that fits the model ended.")
    return output
