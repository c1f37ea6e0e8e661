"""Raw connections to an API behind a real server."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.api import Api, api_settings, eventually, serve_api

TIMEOUT = 30.0  # seconds for a response on a busy machine


@dataclass
class RawResponse:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        assert self.headers["content-type"] == "application/problem+json"
        return str(json.loads(self.body)["code"])


class Connection:
    """A client that controls every byte that it sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(
        self, path: str = "/api/v1/images", host: str = "localhost", **headers: str | int
    ) -> None:
        lines = [f"POST {path} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def response(self) -> RawResponse:
        async with asyncio.timeout(TIMEOUT):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(headers["content-length"]))
        return RawResponse(int(head[0].split()[1]), headers, body)

    async def closed(self) -> bool:
        """Whether the server closes the connection without sending another byte."""
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self.reader.read() == b""
        except ConnectionResetError:
            return True


@dataclass
class Served:
    api: Api
    port: int

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()


@asynccontextmanager
async def serving(tmp_path: Path, bundle: Path, **settings: object) -> AsyncIterator[Served]:
    async with serve_api(api_settings(tmp_path, bundle, **settings)) as (api, port):
        yield Served(api, port)


async def eventually_in_flight(served: Served, uploads: int) -> None:
    async def reached() -> bool:
        return served.api.services.uploads.in_flight == uploads

    await eventually(reached)
