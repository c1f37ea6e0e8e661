"""Webhook receivers on 127.0.0.1 that answer as a test configures them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


@dataclass(frozen=True)
class Request:
    """A request that a receiver got. Header names are in lower case."""

    target: str
    headers: dict[str, str]
    body: bytes
    raw: bytes


class Receiver:
    """Records requests and its responses. A test may change `answer`, the response."""

    def __init__(self, answer: bytes = OK) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.answers: list[bytes] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.requests.append(Request(first.split()[1], headers, body, head + body))
        self.answers.append(await self.reply())
        writer.write(self.answers[-1])
        await writer.drain()
        await reader.read()  # until the client closes

    async def reply(self) -> bytes:
        return self.answer


class SilentReceiver(Receiver):
    """Reads requests and never responds."""

    async def reply(self) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError


class SlowReceiver(Receiver):
    """Responds after `may_answer` is set. Sets `asked` at the first request."""

    def __init__(self, answer: bytes = OK) -> None:
        super().__init__(answer)
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def reply(self) -> bytes:
        self.asked.set()
        await self.may_answer.wait()
        return self.answer


def status(code: int, **headers: str) -> bytes:
    """A response without a body."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {code} Whatever\r\n{lines}content-length: 0\r\n\r\n".encode()


@contextmanager
def closed_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses connections: it is bound, and no server listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """Serve on a free port of 127.0.0.1; the port. Closes all connections after the block."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # the client disconnected, or the test ended
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await server.wait_closed()
        await asyncio.sleep(0)  # the closed transports finish
