"""Runs a fit in a process of its own, which can be stopped and whose memory is free afterwards.

This module needs no NumPy. The process reads from its standard input

    a line of JSON {"base", "labels", "images"}, then for each image
    32 bytes of hash, 2 bytes C, 4 bytes N (big-endian), N bytes of embedding

where C is the index of the image's label, and writes 4 bytes N, N bytes of head and the report.
"""

import asyncio
import json
import os
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import structlog

from core.errors import Unavailable

log = structlog.get_logger(__name__)

IMAGE = struct.Struct(">32sHI")
SIZE = struct.Struct(">I")
FIT_SECONDS = 900.0  # 10,000 images of 100 labels take about a minute
ROOT = Path(__file__).resolve().parents[2]

# Takes what a fit reads, and returns what it writes. Raises Unavailable.
Fit: TypeAlias = Callable[[AsyncIterator[bytes]], Awaitable[bytes]]


def header_of(base: str, labels: Sequence[str], images: int) -> bytes:
    """The first line for a fit of at most `images` images."""
    return json.dumps({"base": base, "labels": labels, "images": images}).encode() + b"\n"


def image_of(image_hash: str, label: int, embedding: bytes) -> bytes:
    """One image for a fit."""
    return IMAGE.pack(bytes.fromhex(image_hash), label, len(embedding)) + embedding


def result_of(output: bytes) -> tuple[bytes, bytes]:
    """The head's file and the report in what a fit wrote."""
    (size,) = SIZE.unpack_from(output)
    return output[SIZE.size : SIZE.size + size], output[SIZE.size + size :]


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
