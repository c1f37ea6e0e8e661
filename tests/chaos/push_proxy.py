"""A proxy between the queue and the worker that duplicates, delays, corrupts and loses pushes.

It also delivers some messages of jobs as dead letters (`tests.chaos.dead_letters`).
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Self

import aiohttp
from aiohttp import web

from core.domain.policy import ACKNOWLEDGING_STATUS, DEAD_LETTER_PATH
from tests.chaos.dead_letters import JobDeadLetters, dead_letter

LONGEST_DELAY = 1.0  # seconds; different delays change the order of pushes
ATTEMPTS_SECONDS = 30.0


class PushProxy:
    """Listens on `port` in a thread and forwards pushes to one of `worker_urls`.

    `rate` is the share of pushes with each kind of fault. `injected` counts faults by kind. `wrong`
    lists the responses that a worker must never send.
    """

    def __init__(self, port: int, worker_urls: Sequence[str], rate: float, seed: int) -> None:
        self._port = port
        self._worker_urls = worker_urls
        self._rate = rate
        self._dead_letters: JobDeadLetters | None = JobDeadLetters()
        self._draw = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="push-proxy", daemon=True)
        self.injected: Counter[str] = Counter()
        self.wrong: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(30), "the proxy did not start"
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def calm(self) -> None:
        """Stop injecting faults."""
        self._rate = 0.0
        self._dead_letters = None

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=20 * 1024 * 1024)
        app.router.add_post("/{path:.*}", self._push)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        timeout = aiohttp.ClientTimeout(total=ATTEMPTS_SECONDS)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as self._session:
            await web.TCPSite(runner, "127.0.0.1", self._port).start()
            self._started.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _push(self, request: web.Request) -> web.Response:
        body = await request.read()
        path = request.path_qs
        headers = {"Authorization": request.headers.get("Authorization", "")}
        if (status := await self._as_dead_letter(request.query_string, headers, body)) is not None:
            return web.Response(status=status)
        kind = self._kind()
        if kind:
            self.injected[f"push {kind}"] += 1
        if kind == "delayed":
            await asyncio.sleep(self._draw.uniform(0, LONGEST_DELAY))
        if kind == "duplicated":
            statuses = await asyncio.gather(*(self._forward(path, headers, body) for _ in range(2)))
            return web.Response(status=max(statuses))
        if kind == "corrupted":
            await self._forward(path, headers, self._corrupt(body))
            return web.Response(status=503)
        status = await self._forward(path, headers, body)
        if kind == "answer lost" and request.transport is not None:
            request.transport.abort()
        return web.Response(status=status)

    async def _as_dead_letter(self, query: str, headers: dict[str, str], body: bytes) -> int | None:
        """The worker's status for the message as a dead letter, or None if it is none."""
        letters = self._dead_letters
        message = letters.select(body) if letters else None
        if letters is None or message is None:
            return None
        # The emulator's pushes have the secret of the worker in the query.
        path = f"{DEAD_LETTER_PATH}?{query}"
        status = await self._forward(path, headers, dead_letter(body))
        if status in ACKNOWLEDGING_STATUS:
            letters.done(message)
            self.injected["push dead-lettered"] += 1
        return status

    def _kind(self) -> str:
        place = self._draw.random()
        for kind in ("delayed", "duplicated", "corrupted", "answer lost"):
            place -= self._rate
            if place < 0:
                return kind
        return ""

    def _corrupt(self, body: bytes) -> bytes:
        """Damage that a worker can detect: the end is missing, or a byte is not text.

        Another digit in a hash would be another valid message. No transport of pushes, which is TLS
        or the loopback interface, turns one into the other.
        """
        if not body:
            return b"\xff"
        at = self._draw.randrange(len(body))
        if self._draw.random() < 0.5:
            return body[:at]
        return body[:at] + bytes([body[at] | 0x80]) + body[at + 1 :]

    async def _forward(self, path: str, headers: dict[str, str], body: bytes) -> int:
        """The status of the worker, or 503 if there is no worker."""
        worker = self._draw.choice(self._worker_urls)
        try:
            async with self._session.post(worker + path, data=body, headers=headers) as answer:
                await answer.read()
                if answer.status >= 500 and answer.status != 503:
                    self.wrong.append(f"worker: {answer.status} to {path.partition('?')[0]}")
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            return 503
