"""A backend whose port calls may fail, before or after their work."""

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from core.backends import Backend, open_backend
from core.clock import Clock, utc_now
from core.errors import Unavailable
from core.settings import Settings

LONGEST_DELAY = 0.5  # seconds


class FaultyPort:
    """Wraps a port. `rate` is the share of calls that fail; fifteen times as many are delayed.

    Half of the failures happen after the work: only the response is lost. These failures would
    cause duplicate work.
    """

    def __init__(self, port: object, rate: float, draw: random.Random) -> None:
        self._port = port
        self._rate = rate
        self._draw = draw

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        return self._faulty(method) if asyncio.iscoroutinefunction(method) else method

    def _faulty(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            fate = self._draw.random() / self._rate if self._rate else 16.0
            if fate < 0.5:
                raise Unavailable("A fault was injected before the call.")
            if 1 <= fate < 16:
                await asyncio.sleep(self._draw.uniform(0, LONGEST_DELAY))
            result = await method(*args, **kwargs)
            if fate < 1:
                raise Unavailable("A fault was injected after the call.")
            return result

        return call


def faulty_backend(rate: float, seed: int) -> Callable[..., AbstractAsyncContextManager[Backend]]:
    """`open_backend` with ports that fail at `rate`."""
    draw = random.Random(seed)

    @asynccontextmanager
    async def opener(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[Backend]:
        async with open_backend(settings, clock) as backend:
            ports: dict[str, Any] = {
                field.name: FaultyPort(getattr(backend, field.name), rate, draw)
                for field in dataclasses.fields(backend)
                if field.name != "links" and getattr(backend, field.name) is not None
            }
            yield dataclasses.replace(backend, **ports)

    return opener
