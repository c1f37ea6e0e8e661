"""RQ: `rq worker-pool -w benchmarks.peers.rq_peer.PreparedWorker`, and what sends it jobs."""

import time
from collections.abc import Sequence
from typing import Any

from redis import Redis
from rq import Queue, Retry, SimpleWorker, Worker
from rq.job import Job

from benchmarks.peers import surroundings, tasks
from benchmarks.peers.client import Sent, Submitter

QUEUE = "benchmark"
TASKS = {surroundings.NO_OP: tasks.noop, surroundings.CLASSIFY: tasks.classify}


class PreparedWorker(Worker):
    """RQ's default worker, which forks for each job. It loads the model before it forks.

    https://python-rq.org/docs/workers/#performance-notes
    """

    def work(self, *args: Any, **kwargs: Any) -> bool:
        tasks.prepare()
        return bool(super().work(*args, **kwargs))


class PreparedSimpleWorker(SimpleWorker):
    """Runs each job in its own process."""

    def work(self, *args: Any, **kwargs: Any) -> bool:
        tasks.prepare()
        return bool(super().work(*args, **kwargs))


class RqSubmitter(Submitter):
    def __init__(self) -> None:
        self._redis = Redis.from_url(surroundings.redis_url())
        self._queue = Queue(QUEUE, connection=self._redis)

    def send(self, image_hashes: Sequence[str]) -> Sent:
        task, sent = TASKS[surroundings.task()], Sent()
        if surroundings.variant() == "simple-many":
            wanted = [
                Queue.prepare_data(task, (image_hash,), retry=Retry(max=3))
                for image_hash in image_hashes
            ]
            sent.ids = [job.id for job in self._queue.enqueue_many(wanted)]
            return sent
        for image_hash in image_hashes:
            began = time.perf_counter()
            sent.ids.append(self._queue.enqueue(task, image_hash, retry=Retry(max=3)).id)
            sent.latencies.append(time.perf_counter() - began)
        return sent

    def result_key(self, task_id: str) -> str:
        return f"rq:results:{task_id}"

    def results(self, task_ids: Sequence[str]) -> list[Any]:
        jobs = Job.fetch_many(task_ids, connection=self._redis)
        return [job and job.return_value() for job in jobs]
