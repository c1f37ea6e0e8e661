"""The server of both services sleeps while nothing happens, and stops at once."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator

import pytest
import uvicorn

from core.http import server as module
from core.http.server import BaseServer


class Counting(BaseServer):
    """Counts its ticks."""

    def __init__(self) -> None:
        super().__init__(uvicorn.Config(app="unused", log_config=None))
        self.ticks: list[int] = []
        self.ticked = asyncio.Event()

    async def on_tick(self, counter: int) -> bool:
        self.ticks.append(counter)
        self.ticked.set()
        return await super().on_tick(counter)


@pytest.fixture
async def idle(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[Counting, "asyncio.Task[None]"]]:
    """A server that has ticked once, and whose next tick is far away."""
    monkeypatch.setattr(module, "TICK_SECONDS", 3600.0)
    server = Counting()
    task = asyncio.create_task(server.main_loop())
    await server.ticked.wait()
    yield server, task
    task.cancel()


async def stopped(task: "asyncio.Task[None]") -> None:
    async with asyncio.timeout(10):
        await task


async def test_stop_ends_the_sleep(idle: tuple[Counting, "asyncio.Task[None]"]) -> None:
    server, task = idle
    server.should_exit = True
    await stopped(task)
    assert len(server.ticks) == 2


async def test_signal_ends_the_sleep(idle: tuple[Counting, "asyncio.Task[None]"]) -> None:
    server, task = idle
    server.handle_exit(signal.SIGTERM, None)
    await stopped(task)
    assert len(server.ticks) == 2


async def test_stop_by_another_thread_ends_the_sleep(
    idle: tuple[Counting, "asyncio.Task[None]"],
) -> None:
    server, task = idle
    thread = threading.Thread(target=setattr, args=(server, "should_exit", True))
    thread.start()
    await stopped(task)
    thread.join()


async def test_stop_before_the_start_is_not_lost() -> None:
    server = Counting()
    server.should_exit = True
    await stopped(asyncio.create_task(server.main_loop()))
    assert len(server.ticks) == 1


async def test_each_tick_updates_the_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn does so at every tenth tick of its own."""
    monkeypatch.setattr(module, "TICK_SECONDS", 0.001)
    server = Counting()
    task = asyncio.create_task(server.main_loop())
    while len(server.ticks) < 3:
        server.server_state.default_headers = []
        server.ticked.clear()
        await server.ticked.wait()
        assert [name for name, _ in server.server_state.default_headers] == [b"date"]
    server.should_exit = True
    await stopped(task)
