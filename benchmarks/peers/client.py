"""The client of one run: sends every task, and waits for every result.

    python -m benchmarks.peers.client celery HASHES TIMEOUT

Runs in the environment of its framework. Prints one JSON object per line: `{"event": "half"}` when
half of the results are stored, and its figures at the end. It asks Redis a few times a second which
results are missing, in the same way for each framework. It reads the results after the clock has
stopped.
"""

import argparse
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.peers import surroundings

WARM_UPS = 40
POLL_SECONDS = 0.025


@dataclass
class Sent:
    """The ids of tasks, and the seconds that each took to send unless they were sent together."""

    ids: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


class Submitter(ABC):
    """The interface of one framework."""

    @abstractmethod
    def send(self, image_hashes: Sequence[str]) -> Sent: ...

    @abstractmethod
    def result_key(self, task_id: str) -> str:
        """The key in Redis that exists when the task has ended."""

    @abstractmethod
    def results(self, task_ids: Sequence[str]) -> list[Any]:
        """The values that the tasks returned, in order, read through the framework."""

    def close(self) -> None:  # noqa: B027 - there may be nothing to do
        """Close connections."""


def submitter(framework: str) -> Submitter:
    if framework == "celery":
        from benchmarks.peers.celery_peer import CelerySubmitter

        return CelerySubmitter()
    if framework == "rq":
        from benchmarks.peers.rq_peer import RqSubmitter

        return RqSubmitter()
    from benchmarks.peers.taskiq_peer import TaskiqSubmitter

    return TaskiqSubmitter()


def run(peer: Submitter, image_hashes: Sequence[str], timeout: float) -> dict[str, Any]:
    """Times in seconds since the first task was sent.

    The run ends after `timeout` seconds without a new result. `missing` counts missing results.
    """
    redis = Redis.from_url(surroundings.redis_url())
    warm = peer.send([image_hashes[n % len(image_hashes)] for n in range(WARM_UPS)])
    missing, *_ = _wait(redis, [peer.result_key(each) for each in warm.ids], 60.0)
    if missing:
        raise SystemExit("The workers do not answer.")
    began = time.perf_counter()
    sent = peer.send(image_hashes)
    accepted = time.perf_counter()
    missing, half, ended = _wait(
        redis, [peer.result_key(each) for each in sent.ids], timeout, tell=True
    )
    returned = [] if missing else peer.results(sent.ids)
    return {
        "accepted": accepted - began,
        "half": half - began,
        "ended": ended - began,
        "latencies": sent.latencies,
        "missing": missing,
        "returned": returned,
    }


def _wait(
    redis: "Redis[bytes]", keys: Sequence[str], timeout: float, tell: bool = False
) -> tuple[int, float, float]:
    """The number of missing keys, and the times when half of the keys and the last one appeared."""
    missing, seen = len(keys), time.perf_counter()
    half = 0.0
    while missing and time.perf_counter() < seen + timeout:
        left = len(keys) - redis.exists(*keys)
        if left < missing:
            missing, seen = left, time.perf_counter()
        if not half and missing <= len(keys) / 2:
            half = time.perf_counter()
            if tell:
                print(json.dumps({"event": "half"}), flush=True)
        if missing:
            time.sleep(POLL_SECONDS)
    return missing, half, seen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("framework", choices=("celery", "rq", "taskiq"))
    parser.add_argument("hashes", type=Path, help="a file with one image hash a line")
    parser.add_argument("timeout", type=float, help="seconds")
    args = parser.parse_args()
    peer = submitter(args.framework)
    try:
        seen = run(peer, args.hashes.read_text().split(), args.timeout)
    finally:
        peer.close()
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
