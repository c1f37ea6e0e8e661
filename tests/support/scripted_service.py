"""A service on a socket with scripted responses, including faults.

Each connection gets the next step of the script; after the last one, the last step again.
"""

import json
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Reply:
    """A response. With `cut`, the connection ends after this many bytes of the body."""

    status: int = 200
    document: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    body: bytes | None = None

    def encoded(self) -> bytes:
        """The bytes on the wire."""
        body = json.dumps(self.document).encode() if self.body is None else self.body
        kind = "application/problem+json" if self.status >= 400 else "application/json"
        headers = {
            "content-type": kind,
            "content-length": str(len(body)),
            "connection": "close",
            **self.headers,
        }
        lines = [f"HTTP/1.1 {self.status} scripted", *(f"{k}: {v}" for k, v in headers.items())]
        sent = body if self.cut is None else body[: self.cut]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + sent


@dataclass(frozen=True, slots=True)
class Drop:
    """The connection ends without a response, after the request was read."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that arrived. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Step = Reply | Drop


class ScriptedService:
    """A context manager. `url` is the address, and `seen` has the requests."""

    def __init__(self, *script: Step) -> None:
        self._script: Sequence[Step] = script
        self._next = 0
        self.seen: list[Seen] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                step = self._script[min(self._next, len(self._script) - 1)]
                self._next += 1
                seen = _read(connection)
                if seen is None:
                    continue
                self.seen.append(seen)
                if isinstance(step, Reply):
                    connection.sendall(step.encoded())


def _read(connection: socket.socket) -> Seen | None:
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (each.partition(":") for each in lines)
    }
    method, path, _ = first.split(" ", 2)
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while not body.endswith(b"0\r\n\r\n"):
            body += connection.recv(65536)
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    return Seen(method, path, headers, body)
