"""Clients that upload slowly, as a process: `python -m tests.support.slow_clients PORT N SECONDS`.

A separate process, so that its work does not count as the server's. Prints the number of uploads by
outcome, as JSON.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

IMAGE = 10 * 2**20
TIMEOUT = 30.0  # seconds until a missing response counts as a hang

FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="img"\r\n\r\n'


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def slow_client(
    port: int, number: int, ends: float, outcomes: Counter[str], draw: random.Random
) -> None:
    """Upload 10 MiB in pieces, repeatedly. Every tenth client sends single bytes."""
    form, drip = number % 2 == 0, number % 10 == 0
    length = IMAGE + (len(PART) if form else 0)
    piece = b"x" if drip else bytes(64 * 1024)
    while time.monotonic() < ends:
        try:
            async with connected(port) as (reader, writer):
                if number % 25 == 0:
                    writer.write(b"POST /what/fast HTTP/1.1\r\nHost:")  # and no more
                else:
                    head = b"POST /%b HTTP/1.1\r\nHost: localhost\r\n%bContent-Length: %d\r\n\r\n"
                    target = (b"what/fast", FORM) if form else (b"api/v1/images", b"")
                    writer.write(head % (*target, length) + (PART if form else b""))
                outcomes[await sent_slowly(reader, writer, piece, number, ends, draw)] += 1
        except (ConnectionError, asyncio.IncompleteReadError):
            outcomes["reset"] += 1
        await asyncio.sleep(draw.uniform(0.5, 1.5))


async def sent_slowly(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    piece: bytes,
    number: int,
    ends: float,
    draw: random.Random,
) -> str:
    answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
    try:
        for _ in range(IMAGE // len(piece)):
            done, _ = await asyncio.wait({answer}, timeout=draw.uniform(0.2, 0.8))
            if done:
                return answer.result().split()[1].decode()
            if time.monotonic() > ends:
                return "still sending"
            if number % 25:
                writer.write(piece)
                async with asyncio.timeout(TIMEOUT):
                    await writer.drain()
        async with asyncio.timeout(TIMEOUT):
            return (await answer).split()[1].decode()
    finally:
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)


async def run(port: int, clients: int, seconds: float) -> Counter[str]:
    """Run this many clients at once, for this many seconds."""
    outcomes: Counter[str] = Counter()
    draw = random.Random(1)
    ends = time.monotonic() + seconds
    await asyncio.gather(*(slow_client(port, n, ends, outcomes, draw) for n in range(clients)))
    return outcomes


if __name__ == "__main__":
    port, clients, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(run(int(port), int(clients), float(seconds)))))
