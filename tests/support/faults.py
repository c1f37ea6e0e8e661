"""A backend that does something of the test's at one of the calls of its ports."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from core.backends import Backend
from core.domain.transitions import Transition
from core.errors import Unavailable

Happening = Callable[[str, bool], Awaitable[None]]


class Watched:
    """Wraps a port, and calls `happens` before and after each call."""

    def __init__(self, name: str, port: object, happens: Happening) -> None:
        self._name = name
        self._port = port
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if not asyncio.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            # A change is known by its transition, as in `records.claim`.
            steps = [each.name for each in args if isinstance(each, Transition)]
            called = f"{self._name}.{steps[0] if steps else name}"
            await self._happens(called, False)
            result = await method(*args, **kwargs)
            await self._happens(called, True)
            return result

        return call


def watched(backend: Backend, happens: Happening) -> Backend:
    """`backend`, with calls of `happens` before and after each port call."""
    ports: dict[str, Any] = {
        field.name: Watched(field.name, getattr(backend, field.name), happens)
        for field in dataclasses.fields(backend)
        if field.name != "links" and getattr(backend, field.name) is not None
    }
    return dataclasses.replace(backend, **ports)


class FaultAt:
    """One call fails: the `number`-th to begin, or the `number`-th to end, its answer lost."""

    def __init__(self, number: int, after: bool) -> None:
        self.number = number
        self.after = after
        self.calls = 0
        self.failed = ""

    async def __call__(self, name: str, after: bool) -> None:
        if after != self.after:
            return
        self.calls += 1
        if self.calls == self.number:
            self.failed = name
            raise Unavailable("A fault was injected.")


class Once:
    """Before the `number`-th call of one method, something else happens."""

    def __init__(self, name: str, number: int, step: Callable[[], Awaitable[object]]) -> None:
        self.name = name
        self.left = number
        self.step = step

    async def __call__(self, name: str, after: bool) -> None:
        if name == self.name and not after:
            self.left -= 1
            if self.left == 0:
                await self.step()
