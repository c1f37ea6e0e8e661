"""SIGTERM during uploads, waits and inference: every client gets a response, nothing is lost (P1).

A request gets a response, or its connection was never accepted by the stopping service. Then the
log of the service has no line about it.
"""

import asyncio
import contextlib
import random
import secrets
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.pictures import picture, sha256
from tests.support.process import with_constants
from tests.support.seeds import drawn_seed
from tests.support.stack import Stack

ROUNDS = 4
# Pieces of an image, twenty per second: the slowest uploads take longer than a shutdown.
PIECES = {"slow": (10, 60), "slowest": (240, 240)}
TIMEOUT = 60.0  # seconds until a missing response counts as a hang


@dataclass
class Answer:
    """A response. The status is 0 if there is none."""

    kind: str
    trace: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Load:
    """Clients of one API, which open a connection for each request."""

    port: int
    draw: random.Random
    answers: list[Answer] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)
    refused: int = 0
    seed: int = 0

    async def client(self, kind: str) -> None:
        """Send one request after the other until cancelled. The last one ends first."""
        stopping = False
        while not stopping:
            request = asyncio.create_task(self._request(kind))
            try:
                await asyncio.shield(request)
            except asyncio.CancelledError:
                stopping = True
                await request
            await asyncio.sleep(0 if stopping else self.draw.uniform(0, 0.3))

    async def _request(self, kind: str) -> None:
        self.seed += 1
        image = picture(self.seed, size=(300, 200) if kind in PIECES else (48, 48))
        answer = Answer(kind, secrets.token_hex(16))
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            self.refused += 1
            await asyncio.sleep(0.1)
            return
        try:
            reading = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
            # A connection that breaks during an upload may still have a response.
            with contextlib.suppress(ConnectionError):
                await self._send(writer, kind, image, answer.trace, reading)
            async with asyncio.timeout(TIMEOUT):
                lines = (await reading).decode().split("\r\n")
                answer.status = int(lines[0].split()[1])
                answer.headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                await reader.readexactly(int(answer.headers["content-length"]))
            if answer.status in (200, 202):
                self.accepted.add(sha256(image))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.answers.append(answer)
            writer.close()

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        kind: str,
        image: bytes,
        trace: str,
        reading: "asyncio.Task[bytes]",
    ) -> None:
        """Send a request. A slow one is sent as by curl, which checks for an early response."""
        head = (
            "POST /api/v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
            f"Content-Length: {len(image)}\r\nTraceparent: 00-{trace}-{'1' * 16}-01\r\n"
        )
        if kind == "wait":
            head += "Prefer: wait=30\r\n"
        writer.write(head.encode() + b"\r\n")
        if kind not in PIECES:
            writer.write(image)
            return
        pieces = self.draw.randint(*PIECES[kind])
        size = len(image) // pieces + 1
        for begin in range(0, len(image), size):
            if (await asyncio.wait({reading}, timeout=0.05))[0]:
                return
            writer.write(image[begin : begin + size])
            await writer.drain()


@pytest.mark.timeout(300)
async def test_sigterm_at_random_moments_answers_every_request_and_loses_nothing(
    tmp_path: Path, colour_bundle: Path
) -> None:
    seed = drawn_seed("moments")
    draw = random.Random(seed)
    # Only a shutdown may end an upload: on a busy machine every client is slow.
    short = with_constants(SHUTDOWN_SECONDS=3, STALE_SECONDS=20, MIN_UPLOAD_BYTES_PER_SECOND=1)
    stack = Stack(tmp_path, colour_bundle, **short, LOG_LEVEL="debug")
    with stack:
        load = Load(stack.api_port, draw)
        kinds = ["fast"] * 6 + ["wait"] * 4 + ["slow"] * 4 + ["slowest"] * 2
        clients = [asyncio.create_task(load.client(kind)) for kind in kinds]
        for number in range(ROUNDS):
            await asyncio.sleep(draw.uniform(0.3, 1.5))
            others = [name for name in ("worker", "queue") if draw.random() < 0.5]
            if number % 2:
                # No worker runs, so clients still wait when the API stops.
                others = ["worker"]
            for name in [*others, "api"]:
                await asyncio.to_thread(stack.stop, name)
                await asyncio.sleep(draw.uniform(0, 0.3))
            await asyncio.to_thread(stack.start, *others, "api")
        await asyncio.sleep(1)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        results = await asyncio.to_thread(stack.results, load.accepted, 120)
        log = stack.log("api")
    counts = Counter((answer.kind, answer.status) for answer in load.answers)
    print(f"answers: {dict(sorted(counts.items()))}; connections refused: {load.refused}")
    assert {answer.status for answer in load.answers} <= {0, 200, 202, 503}
    for answer in load.answers:
        if answer.status == 503:
            assert answer.headers["connection"] == "close"
            assert "retry-after" in answer.headers
        if answer.status == 0:
            # Never accepted. Every accepted request has a line when it ends.
            assert answer.trace not in log, [ln for ln in log.splitlines() if answer.trace in ln]
    for kind in ("fast", "wait", "slow"):
        assert counts[kind, 202] + counts[kind, 200] > 0
    assert counts["slowest", 503] > 0
    assert len(load.accepted) > 50
    assert {result["status"] for result in results.values()} == {"success"}
    assert "Traceback" not in log
