"""Celery: `celery -A benchmarks.peers.celery_peer worker`, and what sends it tasks."""

import time
from collections.abc import Sequence
from typing import Any

from celery import Celery
from celery.result import AsyncResult
from celery.signals import worker_process_init

from benchmarks.peers import surroundings, tasks
from benchmarks.peers.client import Sent, Submitter

app = Celery("benchmark", broker=surroundings.redis_url(), backend=surroundings.redis_url())
app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)
if surroundings.variant() == "late":
    # As Celery's manual advises for tasks that must not be lost:
    # https://docs.celeryq.dev/en/stable/userguide/optimizing.html#reserve-one-task-at-a-time
    app.conf.update(
        task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1
    )

TASKS = {
    surroundings.NO_OP: app.task(tasks.noop, name="noop"),
    surroundings.CLASSIFY: app.task(tasks.classify, name="classify"),
}


@worker_process_init.connect
def prepare(**_: object) -> None:
    tasks.prepare()


class CelerySubmitter(Submitter):
    def send(self, image_hashes: Sequence[str]) -> Sent:
        task, sent = TASKS[surroundings.task()], Sent()
        for image_hash in image_hashes:
            began = time.perf_counter()
            sent.ids.append(task.delay(image_hash).id)
            sent.latencies.append(time.perf_counter() - began)
        return sent

    def result_key(self, task_id: str) -> str:
        return f"celery-task-meta-{task_id}"

    def results(self, task_ids: Sequence[str]) -> list[Any]:
        return [AsyncResult(task_id, app=app).get(timeout=10) for task_id in task_ids]
