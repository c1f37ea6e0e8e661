"""taskiq: `taskiq worker benchmarks.peers.taskiq_peer:broker`, and what sends it tasks."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import uvloop
from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask, TaskiqEvents, TaskiqState
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.peers import surroundings, tasks
from benchmarks.peers.client import Sent, Submitter

EXPIRY_SECONDS = 3600
# A worker takes this many messages from the stream at once; the other one cannot take them.
STREAM_READ_COUNT = 10


def _broker() -> AsyncBroker:
    url = surroundings.redis_url()
    broker: AsyncBroker
    if surroundings.variant() == "stream":
        broker = RedisStreamBroker(url, xread_count=STREAM_READ_COUNT)
    else:
        broker = ListQueueBroker(url)
    return broker.with_result_backend(RedisAsyncResultBackend(url, result_ex_time=EXPIRY_SECONDS))


broker = _broker()


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def prepare(state: TaskiqState) -> None:
    tasks.prepare()


@broker.task
async def noop(image_hash: str) -> str:
    return tasks.noop(image_hash)


@broker.task
def classify(image_hash: str) -> tasks.Labels:
    """A plain function: taskiq runs it in a thread, and its event loop stays free."""
    return tasks.classify(image_hash)


TASKS: dict[str, AsyncTaskiqDecoratedTask[..., Any]] = {
    surroundings.NO_OP: noop,
    surroundings.CLASSIFY: classify,
}


class TaskiqSubmitter(Submitter):
    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._runner.run(broker.startup())

    def send(self, image_hashes: Sequence[str]) -> Sent:
        return self._runner.run(self._send(image_hashes))

    async def _send(self, image_hashes: Sequence[str]) -> Sent:
        task, sent = TASKS[surroundings.task()], Sent()
        for image_hash in image_hashes:
            began = time.perf_counter()
            sent.ids.append((await task.kiq(image_hash)).task_id)
            sent.latencies.append(time.perf_counter() - began)
        return sent

    def result_key(self, task_id: str) -> str:
        return task_id

    def results(self, task_ids: Sequence[str]) -> list[Any]:
        return self._runner.run(self._results(task_ids))

    async def _results(self, task_ids: Sequence[str]) -> list[Any]:
        backend = broker.result_backend
        return [(await backend.get_result(task_id)).return_value for task_id in task_ids]

    def close(self) -> None:
        self._runner.run(broker.shutdown())
        self._runner.close()
