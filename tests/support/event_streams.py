"""Reading server-sent events as the WHATWG's algorithm does, from real answers."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass(frozen=True)
class Received:
    """One event as a browser would dispatch it. `id` is the last id seen, this event's or not."""

    id: str
    event: str
    data: Any


@dataclass
class Reader:
    """One connection. `comments` and `retry` are what no page gets to see."""

    response: httpx.Response
    last_id: str = ""
    comments: int = 0
    retry: int | None = None
    fields: dict[str, list[str]] = field(default_factory=dict)

    async def events(self) -> AsyncIterator[Received]:
        async for line in self.response.aiter_lines():
            if line.startswith(":"):
                self.comments += 1
            elif line:
                name, _, value = line.partition(":")
                self.fields.setdefault(name, []).append(value.removeprefix(" "))
            elif (event := self._dispatched()) is not None:
                yield event

    def _dispatched(self) -> Received | None:
        fields, self.fields = self.fields, {}
        assert fields.keys() <= {"id", "event", "data", "retry"}, fields
        self.retry = int(fields["retry"][-1]) if "retry" in fields else self.retry
        self.last_id = fields.get("id", [self.last_id])[-1]
        if "data" not in fields:
            return None
        data = json.loads("\n".join(fields["data"]))
        return Received(self.last_id, fields.get("event", ["message"])[-1], data)


@asynccontextmanager
async def reading(
    client: httpx.AsyncClient, path: str, last_id: str = "", **headers: str
) -> AsyncIterator[Reader]:
    """A stream that is open; leaving the block closes the connection."""
    if last_id:
        headers["Last-Event-ID"] = last_id
    async with client.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"] == "text/event-stream"
        yield Reader(response, last_id)


async def everything(client: httpx.AsyncClient, path: str, last_id: str = "") -> list[Received]:
    """All events until the server closes the stream."""
    async with reading(client, path, last_id) as reader:
        return [event async for event in reader.events()]
