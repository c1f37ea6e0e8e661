"""A thousand readers of server-sent events in one process."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.bench import load

LINE = 64 * 1024


@dataclass
class Reader:
    """One open stream. `last_at` is the monotonic time of its last event."""

    path: str
    events: int = 0
    last_at: float = 0.0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=LINE)
        try:
            writer.write(load.request("GET", self.path))
            assert b" 200 " in await reader.readline(), self.path
            async for line in reader:
                if line.startswith(b"event: "):
                    self.events += 1
                    self.last_at = time.monotonic()
                    if line != b"event: update\n":
                        self.over.set()
        finally:
            writer.close()


@asynccontextmanager
async def open_streams(port: int, paths: Sequence[str]) -> AsyncIterator[list[Reader]]:
    """Open a stream for each path, and wait until each has its first event."""
    readers = [Reader(path) for path in paths]
    tasks = [asyncio.create_task(reader.run(port)) for reader in readers]
    try:
        while any(reader.events == 0 for reader in readers):
            for task in tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.05)
        yield readers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
