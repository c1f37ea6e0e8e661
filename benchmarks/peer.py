"""A run of another framework: Redis, its workers and its client as processes."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.batch import WORKERS, Batch, Seen, Survived, digest_labels
from benchmarks.environments import environment
from benchmarks.peers import surroundings
from benchmarks.processes import family_memory, kill, stop
from benchmarks.redis_server import RedisServer
from tests.support.stack import ROOT

START_SECONDS = 60.0
RUN_SECONDS = 120.0  # a run fails after this time without a new result


@dataclass(frozen=True)
class Peer:
    """One framework in one configuration. `persistence` is Redis's."""

    framework: str
    variant: str
    persistence: str

    def measure(self, batch: Batch, folder: Path) -> Seen:
        with self._running(batch, folder) as (redis, run):
            run.start_workers()
            with run.client(RUN_SECONDS) as client:
                assert client.stdout
                seen = json.loads(client.stdout.read().splitlines()[-1])
            if seen["missing"]:
                raise RuntimeError(f"{seen['missing']} results are missing:\n{run.log()}")
            workers = family_memory(run.workers.pid)
            return Seen(
                seen["accepted"],
                seen["ended"],
                seen["latencies"],
                workers,
                workers + redis.memory(),
                _checked(batch, seen["returned"]),
            )

    def survive(self, batch: Batch, folder: Path, timeout: float) -> Survived:
        """Kill the workers when half of the results are stored, and start them again."""
        with self._running(batch, folder) as (_, run):
            run.start_workers()
            with run.client(timeout) as client:
                assert client.stdout
                json.loads(client.stdout.readline())
                kill(run.workers)
                run.start_workers()
                seen = json.loads(client.stdout.read().splitlines()[-1])
            return Survived(seen["missing"], max(0.0, seen["ended"] - seen["half"]))

    @contextmanager
    def _running(self, batch: Batch, folder: Path) -> Iterator[tuple[RedisServer, "_Run"]]:
        with RedisServer(folder / "redis", self.persistence) as redis:
            run = _Run(self, batch, folder, redis.url)
            try:
                yield redis, run
            finally:
                run.stop()

    def command(self, task: str) -> list[str]:
        """The arguments of the command that starts the workers."""
        if self.framework == "celery":
            app = ["-A", "benchmarks.peers.celery_peer"]
            return ["celery", *app, "worker", "-c", f"{WORKERS}", "-l", "WARNING"]
        if self.framework == "rq":
            kind = "PreparedWorker" if self.variant == "forking" else "PreparedSimpleWorker"
            kind = f"benchmarks.peers.rq_peer.{kind}"
            return ["rq", "worker-pool", "-q", "-n", f"{WORKERS}", "-w", kind, "benchmark"]
        command = ["taskiq", "worker", "benchmarks.peers.taskiq_peer:broker"]
        command += ["--workers", f"{WORKERS}", "--log-level", "WARNING"]
        if task == surroundings.CLASSIFY:
            # One image at a time per process, as for the others. The next one is prefetched.
            command += ["--max-threadpool-threads", "1", "--max-async-tasks", "2"]
        return command


class _Run:
    """The processes of one run."""

    def __init__(self, peer: Peer, batch: Batch, folder: Path, redis_url: str) -> None:
        self._peer, self._batch, self._folder = peer, batch, folder
        self._bin = environment(peer.framework)
        self._ready = folder / "ready"
        self._ready.mkdir(parents=True)
        self._environment = {
            **{name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ},
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            surroundings.REDIS: redis_url,
            surroundings.TASK: batch.task,
            surroundings.VARIANT: peer.variant,
            surroundings.IMAGES: str(batch.images),
            surroundings.BUNDLE: str(batch.bundle),
            surroundings.READY: str(self._ready),
            "RQ_REDIS_URL": redis_url,
        }
        self.workers: subprocess.Popen[bytes]

    def start_workers(self) -> None:
        """Wait until each worker process can take a task."""
        for left in self._ready.iterdir():
            left.unlink()
        program, *arguments = self._peer.command(self._batch.task)
        with (self._folder / "workers.log").open("ab") as log:
            self.workers = subprocess.Popen(
                [self._bin / program, *arguments],
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECONDS
        while len(list(self._ready.iterdir())) < WORKERS:
            if self.workers.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._peer}: no workers.\n{self.log()}")
            time.sleep(0.05)

    @contextmanager
    def client(self, timeout: float) -> Iterator["subprocess.Popen[bytes]"]:
        with subprocess.Popen(
            [
                *(self._bin / "python", "-m", "benchmarks.peers.client", self._peer.framework),
                *(str(self._batch.listing), f"{timeout:g}"),
            ],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
        ) as client:
            try:
                yield client
            finally:
                client.kill()

    def stop(self) -> None:
        if hasattr(self, "workers"):
            stop(self.workers)

    def log(self) -> str:
        return (self._folder / "workers.log").read_text(errors="replace")[-4000:]


def _checked(batch: Batch, returned: list[Any]) -> str:
    """A digest of what the tasks returned, in the order of the batch's hashes."""
    if batch.task == surroundings.NO_OP:
        if tuple(returned) != batch.hashes:
            raise RuntimeError("A task returned something else than it was given.")
        return ""
    best = {
        image_hash: labels[0][0] for image_hash, labels in zip(batch.hashes, returned, strict=True)
    }
    return digest_labels(best)
