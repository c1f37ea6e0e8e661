"""A closed-loop HTTP/1.1 load generator with little overhead."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import uvloop


@dataclass
class Load:
    """The figures of one run. `latencies` has the seconds of each request."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Responses per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: int) -> float:
        """The percentile of the latency, in milliseconds."""
        return 1000 * statistics.quantiles(self.latencies, n=100)[share - 1]


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of one request. Names of headers have underscores for hyphens."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def multipart(path: str, image: bytes, **headers: str) -> bytes:
    """An upload of `image` in the field `img`, as curl sends it."""
    boundary = "----------------------------bench"
    body = (
        (
            f'--{boundary}\r\nContent-Disposition: form-data; name="img"; filename="p.jpg"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        ).encode()
        + image
        + f"\r\n--{boundary}--\r\n".encode()
    )
    content_type = f"multipart/form-data; boundary={boundary}"
    return request("POST", path, body, Content_Type=content_type, **headers)


def run(
    port: int, requests: Sequence[bytes], connections: int, seconds: float | None = None
) -> Load:
    """Send each request once or, with `seconds`, repeat them for that time."""
    return uvloop.run(_run(port, requests, connections, seconds))


async def _run(
    port: int, requests: Sequence[bytes], connections: int, seconds: float | None
) -> Load:
    load = Load()
    began = time.perf_counter()
    source = _endless(requests, began + seconds) if seconds else iter(requests)
    loop = asyncio.get_running_loop()
    waiting = []
    for _ in range(connections):
        client = _Client(source, load, loop.create_future())
        await loop.create_connection(partial(_same, client), "127.0.0.1", port)
        waiting.append(client.done)
    await asyncio.gather(*waiting)
    load.seconds = time.perf_counter() - began
    return load


def _same(client: "_Client") -> "_Client":
    return client


def _endless(requests: Sequence[bytes], deadline: float) -> Iterator[bytes]:
    while True:
        for item in requests:
            if time.perf_counter() >= deadline:
                return
            yield item


class _Client(asyncio.Protocol):
    """One keep-alive connection that always has one request in flight."""

    def __init__(self, source: Iterator[bytes], load: Load, done: "asyncio.Future[None]") -> None:
        self.source, self.load, self.done = source, load, done
        self.buffer = b""
        self.transport: asyncio.Transport
        self.began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's class is not a subclass
        self._next()

    def _next(self) -> None:
        following = next(self.source, None)
        if following is None:
            self.transport.close()
            if not self.done.done():
                self.done.set_result(None)
            return
        self.began = time.perf_counter()
        self.transport.write(following)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        status = int(head[9:12])
        length = 0
        if status not in (204, 304):
            lower = head.lower()
            start = lower.index(b"content-length:") + 15
            length = int(lower[start:].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self.buffer = b""
        self.load.latencies.append(time.perf_counter() - self.began)
        self.load.statuses[status] += 1
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))
