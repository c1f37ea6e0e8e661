"""Publishers wake the queue process; polling is the safety net."""

import asyncio
import errno
import socket
import stat
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from core.backends.embedded import open_queue_store
from core.backends.embedded.publisher import SqlitePublisher
from core.backends.embedded.queue import PushQueue, lane_sizes
from core.backends.embedded.queue_store import QueueStore
from core.backends.embedded.wake_up import NAME, WakeUpSender, receiving
from core.backends.push_client import PushClient
from core.clock import utc_now
from core.domain.messages import ClassifyImage
from core.domain.records import RecordKey
from core.settings import Settings
from tests.support.scripted_worker import ScriptedWorker, first_then, until

MESSAGE = ClassifyImage(RecordKey("public", "ab" * 32, "colours@0123456789ab"))
LONG = "a" * 60  # three of these make a path that is too long for the address of a socket


@pytest.fixture
async def worker() -> AsyncIterator[ScriptedWorker]:
    async with ScriptedWorker() as listening:
        yield listening


@pytest.fixture
def settings(tmp_path: Path, worker: ScriptedWorker) -> Settings:
    return Settings(data_dir=tmp_path / "data", worker_port=worker.port, max_backoff_seconds=6)


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[QueueStore]:
    async with open_queue_store(settings) as opened:
        yield opened


def idle(queue: PushQueue) -> bool:
    """Whether the queue has no message, and waits for a wake-up or for its next poll."""
    return not (queue._woken or queue._due or queue._pushes)


@pytest.mark.parametrize("parts", [("data",), (LONG, LONG, LONG)])
async def test_datagram_wakes_the_receiver(tmp_path: Path, parts: tuple[str, ...]) -> None:
    folder = tmp_path.joinpath(*parts)
    folder.mkdir(parents=True)
    woken = asyncio.Event()
    sender = WakeUpSender(folder)
    sender.send()  # without a receiver
    (folder / NAME).touch()  # as a killed process leaves it
    with receiving(folder, woken.set) as possible:
        assert possible
        assert stat.S_ISSOCK((folder / NAME).stat().st_mode)
        for _ in range(2):
            for _ in range(1000):  # more than the socket's buffer has room for
                sender.send()
            await asyncio.wait_for(woken.wait(), 10)
            woken.clear()
            await asyncio.sleep(0)
    assert not (folder / NAME).exists()
    sender.send()
    sender.close()


async def test_publications_of_one_moment_share_a_datagram(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket must be short
    sender = WakeUpSender(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setblocking(False)
        receiver.bind(NAME)
        for _ in range(2):
            for _ in range(3):
                sender.send_soon()
            await asyncio.sleep(0)
            receiver.recv(1)
            with pytest.raises(BlockingIOError):
                receiver.recv(1)
    sender.close()


async def test_folder_without_sockets_is_reported() -> None:
    """Some file systems have no sockets. The queue polls often then."""
    with receiving(Path("/proc/self/net"), lambda: None) as possible:
        assert not possible


async def test_socket_of_a_killed_process_in_a_read_only_folder_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write to a folder of any mode, so the call fails instead."""

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / NAME).touch()
    monkeypatch.setattr(Path, "unlink", refuse)
    with receiving(tmp_path, lambda: None) as possible:
        assert not possible


async def test_folder_that_becomes_read_only_does_not_prevent_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with receiving(tmp_path, lambda: None) as possible:
        assert possible
        monkeypatch.setattr(Path, "unlink", refuse)


async def test_wake_up_delivers_before_the_next_poll(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    sender = WakeUpSender(settings.data_dir)
    publisher = SqlitePublisher(store, sender)
    async with PushClient(settings.worker_url) as client:
        queue = PushQueue(store, client, settings.channel_delivery, lane_sizes(4))
        queue.idle_poll_interval = 1000
        task = asyncio.create_task(queue.run(20))
        with receiving(settings.data_dir, queue.wake):
            for number in range(1, 4):
                await until(lambda: idle(queue))
                await publisher.publish(MESSAGE)
                await until(lambda: len(worker.deliveries) == number, seconds=20)  # noqa: B023
        queue.stop()
        await task
    sender.close()


async def test_message_is_delivered_when_it_is_due_without_a_wake_up(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    """A refused one after its backoff of 0.1 s, and one that is due later."""
    worker.answer = first_then(503, 204)
    now = utc_now()
    await store.publish(MESSAGE.channel, MESSAGE.attributes(), b"", now)
    later = now + timedelta(seconds=1)
    await store.publish(MESSAGE.channel, MESSAGE.attributes(), b"", later)
    async with PushClient(settings.worker_url) as client:
        queue = PushQueue(store, client, settings.channel_delivery, lane_sizes(4))
        queue.idle_poll_interval = 1000
        task = asyncio.create_task(queue.run(20))
        await until(lambda: len(worker.deliveries) == 4, seconds=20)
        queue.stop()
        await task
    assert [each.attempt for each in worker.deliveries] == [1, 2, 1, 2]


async def test_lost_datagram_delays_a_message_until_the_next_poll(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    async with PushClient(settings.worker_url) as client:
        queue = PushQueue(store, client, settings.channel_delivery, lane_sizes(4))
        queue.idle_poll_interval = 0.3
        task = asyncio.create_task(queue.run(20))
        await until(lambda: idle(queue))
        await store.publish(MESSAGE.channel, MESSAGE.attributes(), b"", utc_now())
        await until(lambda: len(worker.deliveries) == 1, seconds=20)
        queue.stop()
        await task
