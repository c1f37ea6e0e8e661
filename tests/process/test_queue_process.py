"""The queue as a process: killed, started twice, stopped, and without a worker (P1)."""

import asyncio
import json
import os
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from core.backends import open_backend
from core.backends.embedded import open_queue_store
from core.domain.messages import ClassifyImage
from core.domain.policy import CLASSIFY_PATH, DEAD_LETTER_PATH, RECONCILE_PATH, SCHEDULE_PATH
from core.domain.records import RecordKey
from core.settings import Settings
from tests.support.process import with_constants
from tests.support.scripted_worker import Delivery, ScriptedWorker, always, until

ROOT = Path(__file__).resolve().parents[2]


def message(number: int) -> ClassifyImage:
    return ClassifyImage(RecordKey("public", f"{number:064x}", "colours@0123456789ab"))


@pytest.fixture
async def worker() -> AsyncIterator[ScriptedWorker]:
    async with ScriptedWorker() as listening:
        yield listening


@pytest.fixture
def environment(worker: ScriptedWorker, tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DATA_DIR": str(tmp_path / "data"),
        "WORKER_PORT": str(worker.port),
        "MAX_BACKOFF_SECONDS": "0.2",
        "DELIVERY_ATTEMPTS": "100",
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "info",
    }


@pytest.fixture
def settings(environment: dict[str, str], worker: ScriptedWorker) -> Settings:
    return Settings(data_dir=Path(environment["DATA_DIR"]), worker_port=worker.port)


async def start(environment: dict[str, str], module: str = "queue", *arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.process",
        f"core.backends.embedded.{module}",
        *arguments,
        cwd=environment["DATA_DIR"].rpartition("/")[0],  # a folder without an .env file
        env=environment,
        stdout=PIPE,
        stderr=PIPE,
    )


@asynccontextmanager
async def queue_process(environment: dict[str, str]) -> AsyncIterator[Process]:
    process = await start(environment)
    try:
        yield process
    finally:
        await killed(process)


async def killed(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def stopped(process: Process) -> list[dict[str, Any]]:
    """Stop it by SIGTERM, and return the lines that it logged."""
    process.send_signal(signal.SIGTERM)
    output, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    return [json.loads(line) for line in output.splitlines()]


async def logged(process: Process, message: str) -> list[dict[str, Any]]:
    """The lines that it logs up to `message`."""
    assert process.stdout is not None
    lines: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        while not lines or lines[-1]["message"] != message:
            lines.append(json.loads(await process.stdout.readline()))
    return lines


async def publish(settings: Settings, *numbers: int) -> None:
    async with open_backend(settings) as backend:
        for number in numbers:
            await backend.publisher.publish(message(number))


async def messages_left(settings: Settings) -> int:
    async with open_queue_store(settings) as store:
        return await store._database.read(
            lambda connection: int(
                connection.execute("SELECT count(*) FROM messages").fetchone()[0]
            )
        )


async def test_messages_published_without_a_queue_are_delivered_later(
    environment: dict[str, str], settings: Settings, worker: ScriptedWorker
) -> None:
    await publish(settings, *range(10))
    async with queue_process(environment) as process:
        await until(lambda: len(worker.deliveries) == 10)
        await stopped(process)
    assert {delivery.attempt for delivery in worker.deliveries} == {1}
    assert await messages_left(settings) == 0


async def test_a_running_queue_delivers_new_messages(
    environment: dict[str, str], settings: Settings, worker: ScriptedWorker
) -> None:
    async with queue_process(environment):
        await publish(settings, 1)
        await until(lambda: len(worker.deliveries) == 1)
        await publish(settings, 2)
        await until(lambda: len(worker.deliveries) == 2)


async def test_a_killed_queue_loses_nothing(
    environment: dict[str, str], settings: Settings, worker: ScriptedWorker
) -> None:
    async def hang(delivery: Delivery) -> int:
        await asyncio.Event().wait()
        return 204

    worker.answer = hang
    await publish(settings, 1)
    async with queue_process(environment):
        await until(lambda: len(worker.deliveries) == 1)
    worker.answer = always(204)
    async with queue_process(environment) as process:
        await until(lambda: len(worker.deliveries) == 2)
        await stopped(process)
    # The first delivery counts as an attempt: the worker received it.
    assert [delivery.attempt for delivery in worker.deliveries] == [1, 2]
    assert await messages_left(settings) == 0


def has_at_least(worker: ScriptedWorker, wanted: int) -> bool:
    return len(worker.deliveries) >= wanted


async def test_a_queue_that_is_killed_repeatedly_delivers_everything(
    environment: dict[str, str], settings: Settings, worker: ScriptedWorker
) -> None:
    chance = random.Random(2)
    acknowledged: set[str] = set()

    async def acknowledge_some(delivery: Delivery) -> int:
        await asyncio.sleep(chance.uniform(0, 0.02))
        if chance.random() < 0.3:
            return 503
        acknowledged.add(delivery.image_hash)
        return 204

    async def delivered() -> bool:
        return len(acknowledged) == total and await messages_left(settings) == 0

    worker.answer = acknowledge_some
    total = 400
    await publish(settings, *range(total))
    for _ in range(4):
        begun = len(worker.deliveries)
        async with queue_process(environment):
            wanted = begun + chance.randint(1, 60)
            await until(partial(has_at_least, worker, wanted))
    async with queue_process(environment) as process:
        # A message is delivered again if the queue was killed before it recorded the outcome.
        await until(delivered)
        await stopped(process)
    assert await messages_left(settings) == 0


async def test_the_error_names_a_folder_that_cannot_be_used(environment: dict[str, str]) -> None:
    process = await start(environment | {"DATA_DIR": __file__})
    _, errors = await process.communicate()
    assert process.returncode == 1
    reason = f"The data folder {__file__} cannot be used: File exists."
    assert errors.decode() == f"The queue cannot start: {reason}\n"


async def test_a_second_queue_on_the_same_folder_is_refused(
    environment: dict[str, str], settings: Settings, worker: ScriptedWorker
) -> None:
    await publish(settings, 1)
    async with queue_process(environment) as first:
        await until(lambda: len(worker.deliveries) == 1)
        second = await start(environment)
        _, errors = await second.communicate()
        assert second.returncode == 1
        assert f"Another queue (process {first.pid}) serves" in errors.decode()
        assert "Traceback" not in errors.decode()
        await publish(settings, 2)
        await until(lambda: len(worker.deliveries) == 2)


async def test_an_unreachable_worker_is_logged_once(
    environment: dict[str, str], settings: Settings, worker: ScriptedWorker
) -> None:
    await worker.__aexit__(None, None, None)
    await publish(settings, 1, 2, 3)
    unreachable = "worker unreachable; messages wait for it"
    async with queue_process(environment) as process:
        lines = await logged(process, unreachable)
        await asyncio.sleep(1)  # the queue probes the worker several times
        await worker.__aenter__()
        await until(lambda: len(worker.deliveries) == 3)
        lines += await stopped(process)
    messages = [line["message"] for line in lines]
    assert messages.count(unreachable) == 1
    assert messages.count("worker reachable again") == 1
    assert len(messages) == 4  # these two, and those of the start and the stop


async def test_log_lines_about_an_image_have_its_hash(
    environment: dict[str, str], settings: Settings, worker: ScriptedWorker
) -> None:
    async def refuse_to_classify(delivery: Delivery) -> int:
        return 503 if delivery.path == CLASSIFY_PATH else 204

    worker.answer = refuse_to_classify
    await publish(settings, 7)
    async with queue_process(environment | {"DELIVERY_ATTEMPTS": "2"}) as process:
        await until(lambda: len(worker.to(DEAD_LETTER_PATH)) == 1)
        lines = await stopped(process)
    about = [line for line in lines if line.get("image_hash") == message(7).key.image_hash]
    assert [line["message"] for line in about] == ["delivery refused", "dead letter"]
    assert about[1]["severity"] == "ERROR"


async def test_the_queue_process_calls_the_scheduled_paths(
    environment: dict[str, str], worker: ScriptedWorker
) -> None:
    async with queue_process(environment | with_constants(STALE_SECONDS=2)) as process:
        await until(lambda: len(worker.to(RECONCILE_PATH)) >= 2)
        worker.answer_to_calls = always(500)
        before = {path: len(worker.to(path)) for path in (RECONCILE_PATH, SCHEDULE_PATH)}
        # A second call to each path means that the response to the first was handled.
        await until(lambda: all(len(worker.to(path)) >= n + 2 for path, n in before.items()))
        lines = await stopped(process)
    failed = [line["path"] for line in lines if line["message"] == "call failed"]
    assert {RECONCILE_PATH, SCHEDULE_PATH} <= set(failed)
