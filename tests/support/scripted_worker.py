"""A small real HTTP server that responds to pushes as a test sets, and records them."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from core.domain.policy import RECONCILE_PATH, SCHEDULE_PATH

CALLED_REGULARLY = (RECONCILE_PATH, SCHEDULE_PATH)
Answer = Callable[["Delivery"], Awaitable[int]]


@dataclass(frozen=True)
class Delivery:
    """One request; `at` is on the loop's clock."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def envelope(self) -> dict[str, Any]:
        envelope: dict[str, Any] = json.loads(self.body)
        return envelope

    @property
    def image_hash(self) -> str:
        return str(self.envelope["message"]["attributes"]["image_hash"])

    @property
    def attempt(self) -> int | None:
        attempt: int | None = self.envelope.get("deliveryAttempt")
        return attempt


class ScriptedWorker:
    """Listens on 127.0.0.1 in its context. Entered again, it uses the same port.

    `deliveries` are pushes, and `answer` gives the responses. `calls` are those of the scheduler in
    the queue's process, and `answer_to_calls` gives the responses.
    """

    def __init__(self) -> None:
        self.port = 0
        self.deliveries: list[Delivery] = []
        self.calls: list[Delivery] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.answer: Answer = always(204)
        self.answer_to_calls: Answer = always(204)
        self._connections: set[asyncio.Task[None]] = set()

    def to(self, path: str) -> list[Delivery]:
        """Pushes and calls to `path`, in their order."""
        return [each for each in [*self.deliveries, *self.calls] if each.path == path]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                request, *lines = head.strip().split("\r\n")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines)
                }
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                status = await self._handle(request.split(" ")[1], headers, body)
                length = "" if status in (204, 304) else "Content-Length: 0\r\n"
                location = "Location: /elsewhere\r\n" if 300 <= status < 400 else ""
                writer.write(f"HTTP/1.1 {status} Scripted\r\n{length}{location}\r\n".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the queue closed the connection
        finally:
            writer.close()

    async def _handle(self, path: str, headers: dict[str, str], body: bytes) -> int:
        delivery = Delivery(path, headers, body, asyncio.get_running_loop().time())
        if path in CALLED_REGULARLY:
            self.calls.append(delivery)
            return await self.answer_to_calls(delivery)
        self.deliveries.append(delivery)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.answer(delivery)
        finally:
            self.in_flight -= 1


def always(status: int) -> Answer:
    async def answer(delivery: Delivery) -> int:
        return status

    return answer


def first_then(first: int, then: int) -> Answer:
    """`first` to a message's first delivery, `then` to the others."""

    async def answer(delivery: Delivery) -> int:
        return first if delivery.attempt == 1 else then

    return answer


async def until(
    condition: Callable[[], bool | Coroutine[Any, Any, bool]], seconds: float = 60
) -> None:
    """Wait until `condition`, plain or async, holds. Fails after `seconds`."""
    async with asyncio.timeout(seconds):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.01)
