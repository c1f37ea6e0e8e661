"""What an idle Glimpse costs, and how soon a message is pushed: `python -m tests.bench.idle`.

The processes of `make run` on the embedded backend idle for `--seconds`. Then messages are
published one by one, at random moments, to a queue process whose worker is scripted. The time of a
publication, which ends with an fsync, is shown apart from the time until its push.
"""

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from core.backends import open_backend
from core.domain.messages import ClassifyImage
from core.domain.records import RecordKey
from core.settings import DEFAULT_BUNDLE
from tests.support.scripted_worker import ScriptedWorker, until
from tests.support.settings import isolated_settings
from tests.support.stack import ROOT, Stack

SETTLE_SECONDS = 10.0


def cpu_by_process(stack: Stack, seconds: float) -> dict[str, float]:
    """Per cent of a core that each process and its children use while nothing happens."""
    time.sleep(SETTLE_SECONDS)
    processes = {
        f"{name}{'' if each.pid == process.pid else ' (child)'} {each.pid}": each
        for name, process in stack.processes.items()
        for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children(True))
    }
    before = {name: sum(each.cpu_times()[:2]) for name, each in processes.items()}
    time.sleep(seconds)
    return {
        name: 100 * (sum(each.cpu_times()[:2]) - before[name]) / seconds
        for name, each in processes.items()
    }


@dataclass(frozen=True)
class Waits:
    """Milliseconds of each message, in order."""

    publication: list[float]
    push: list[float]  # from the end of the publication until the worker has the push


async def publish_to_push(folder: Path, messages: int) -> Waits:
    loop = asyncio.get_running_loop()

    async with ScriptedWorker() as worker:
        settings = isolated_settings(data_dir=folder, worker_port=worker.port)
        environment = {**os.environ, "DATA_DIR": str(folder), "WORKER_PORT": str(worker.port)}
        with subprocess.Popen(  # noqa: ASYNC220 - at once
            [sys.executable, "-m", "core.backends.embedded.queue"], cwd=ROOT, env=environment
        ) as queue:
            try:
                async with open_backend(settings) as backend:
                    # The first message waits for the start of the queue process.
                    await backend.publisher.publish(ClassifyImage(_key(0)))
                    await until(lambda: len(worker.deliveries) == 1)
                    times = []
                    for number in range(1, messages + 1):
                        await asyncio.sleep(random.uniform(0.05, 0.15))
                        begun = loop.time()
                        await backend.publisher.publish(ClassifyImage(_key(number)))
                        times.append((begun, loop.time()))
                    await until(lambda: len(worker.deliveries) > messages)
                    arrived = {each.image_hash: each.at for each in worker.deliveries}
            finally:
                queue.terminate()
    return Waits(
        publication=[1000 * (end - begun) for begun, end in times],
        push=[
            1000 * (arrived[_key(number).image_hash] - end)
            for number, (_, end) in enumerate(times, 1)
        ],
    )


def _key(number: int) -> RecordKey:
    return RecordKey("public", f"{number:064x}", "m@0123456789ab")


def _described(waits: list[float]) -> str:
    quantiles = statistics.quantiles(waits, n=20)
    return f"median {quantiles[9]:.1f} ms, 95 % {quantiles[18]:.1f} ms, longest {max(waits):.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--messages", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"LOG_LEVEL": "warning", "WORKER_CONCURRENCY": 0}
        with Stack(Path(folder) / "stack", DEFAULT_BUNDLE, **settings) as stack:
            shares = cpu_by_process(stack, given.seconds)
        for name, share in shares.items():
            print(f"{name}: {share:.2f} % of a core")
        print(f"all: {sum(shares.values()):.2f} % of a core")
        waits = asyncio.run(publish_to_push(Path(folder) / "queue", given.messages))
    print(f"publication: {_described(waits.publication)}")
    print(f"from there to push: {_described(waits.push)}")


if __name__ == "__main__":
    main()
