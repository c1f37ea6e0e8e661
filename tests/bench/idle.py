"""What an idle Glimpse costs, and how soon a message is pushed: `python -m tests.bench.idle`.

The processes of `make run` on the embedded backend idle for `--seconds`. Then messages are
published one by one, at random moments, to a queue process whose worker is scripted.
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


async def publish_to_push(folder: Path, messages: int) -> list[float]:
    """Milliseconds from the start of each publication until the worker has the push."""
    arrived: dict[str, float] = {}

    async with ScriptedWorker() as worker:
        settings = isolated_settings(data_dir=folder, worker_port=worker.port)
        environment = {**os.environ, "DATA_DIR": str(folder), "WORKER_PORT": str(worker.port)}
        with subprocess.Popen(  # noqa: ASYNC220 - at once
            [sys.executable, "-m", "core.backends.embedded.queue"], cwd=ROOT, env=environment
        ) as queue:
            try:
                async with open_backend(settings) as backend:
                    begun = {}
                    for number in range(messages):
                        await asyncio.sleep(random.uniform(0.05, 0.15))
                        key = RecordKey("public", f"{number:064x}", "m@0123456789ab")
                        begun[key.image_hash] = asyncio.get_running_loop().time()
                        await backend.publisher.publish(ClassifyImage(key))
                    await until(lambda: len(worker.deliveries) >= messages)
                    arrived = {each.image_hash: each.at for each in worker.deliveries}
            finally:
                queue.terminate()
    # Without the first ones, for which the queue process may still start.
    skipped = messages // 10
    return [1000 * (arrived[each] - at) for each, at in list(begun.items())[skipped:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--messages", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with Stack(Path(folder) / "stack", DEFAULT_BUNDLE, LOG_LEVEL="warning") as stack:
            shares = cpu_by_process(stack, given.seconds)
        for name, share in shares.items():
            print(f"{name}: {share:.2f} % of a core")
        print(f"all: {sum(shares.values()):.2f} % of a core")
        waits = asyncio.run(publish_to_push(Path(folder) / "queue", given.messages))
    quantiles = statistics.quantiles(waits, n=20)
    print(f"publish to push: median {quantiles[9]:.1f} ms, 95 % {quantiles[18]:.1f} ms")


if __name__ == "__main__":
    main()
