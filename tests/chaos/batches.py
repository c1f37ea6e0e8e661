"""A client that creates jobs, cancels some, and records the responses."""

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.chaos.load import RETRY_SECONDS
from tests.support.pictures import picture
from tests.support.plain_http import NO_TLS

NEW, BROKEN = 10, 2
TOTAL = NEW + BROKEN + 1  # one image is a duplicate
ENDED = {"completed", "cancelled"}  # a job fails by a dead letter, which is replayed
REPAIR_SECONDS = 60.0  # for the items of replayed dead letters


@dataclass
class JobLedger:
    """The accepted jobs, the cancelled ones, and the broken promises.

    `unrepaired` are jobs whose replayed messages were lost with the queue: their items may stay
    failed.
    """

    cancelled: dict[str, bool] = field(default_factory=dict)
    last: dict[str, dict[str, Any]] = field(default_factory=dict)
    unrepaired: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, job: dict[str, Any]) -> None:
        """A job in a response, checked against earlier responses."""
        with self.lock:
            before = self.last.get(job["job_id"])
            self.last[job["job_id"]] = job
            if before is None:
                return
            if before["status"] in ENDED and before["status"] != job["status"]:
                self.wrong.append(f"{before['job_id']}: {before['status']}, then {job['status']}")
            if before["progress"] > job["progress"]:
                self.wrong.append(f"{before['job_id']}: {before['progress']} %, then less")

    def unfinished(self) -> set[str]:
        with self.lock:
            ended = {id_ for id_, job in self.last.items() if job["status"] in ENDED}
            return self.cancelled.keys() - ended

    def check(self, http: httpx.Client) -> list[str]:
        """The broken promises, after the faults are over and every job had time to end."""
        wrong, ends = list(self.wrong), time.monotonic() + REPAIR_SECONDS
        for job_id in self.cancelled:
            while (found := self._wrong_with(http, job_id)) and time.monotonic() < ends:
                time.sleep(RETRY_SECONDS)
            wrong += found
        return wrong

    def _wrong_with(self, http: httpx.Client, job_id: str) -> list[str]:
        answer = http.get(f"/api/v1/jobs/{job_id}")
        if answer.status_code != 200:
            return [f"{job_id}: accepted, then {answer.status_code}"]
        job = answer.json()
        results = http.get(f"/api/v1/jobs/{job_id}/results").json()["results"]
        states = [each["status"] for each in results]
        counts = [job[name] for name in ("succeeded", "failed", "cancelled")]
        named = [states.count(name) for name in ("succeeded", "failed", "cancelled")]
        wrong = []
        if counts != named or sum(counts) != TOTAL:
            wrong.append(f"{job_id}: counts {counts}, items {named}")
        if [each["index"] for each in results] != list(range(TOTAL)):
            wrong.append(f"{job_id}: results out of order")
        if self.cancelled[job_id] and job["status"] != "cancelled":
            wrong.append(f"{job_id}: cancelled, then {job['status']}")
        if not self.cancelled[job_id]:
            failed = range(BROKEN, TOTAL) if job_id in self.unrepaired else [BROKEN]
            if job["status"] != "completed" or counts[1] not in failed or counts[2]:
                wrong.append(f"{job_id}: {job['status']} with {counts}")
        return wrong


class Batcher(threading.Thread):
    """Creates one job after another, each with an idempotency key.

    Each request goes to one of several API processes.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        ledger: JobLedger,
        rate: float,
        seed: int,
        stop: threading.Event,
    ) -> None:
        """`rate` is in jobs per second. `seed` makes its images differ from those of others."""
        super().__init__(name="batcher", daemon=True)
        self._base_urls = base_urls
        self._ledger = ledger
        self._pause = 1 / rate
        self._stop_event = stop
        self._draw = random.Random(seed)

    def run(self) -> None:
        number = 0
        with httpx.Client(timeout=60, verify=NO_TLS) as http:
            while not self._stop_event.is_set():
                number += 1
                job_id = self._until_taken(http, number)
                if job_id and self._draw.random() < 0.3:
                    self._stop_event.wait(self._draw.uniform(0, 1))
                    self._cancel(http, job_id)
                for each in self._ledger.unfinished():
                    self._look(http, each)
                self._stop_event.wait(self._pause)

    def _until_taken(self, http: httpx.Client, number: int) -> str:
        new = [picture(seed=900_000_000 + number * 100 + n, size=(32, 32)) for n in range(NEW)]
        broken = [b"no picture %d %d" % (number, n) for n in range(BROKEN)]
        files = [("imgs", (f"{n}.jpg", data)) for n, data in enumerate([*new, *broken, new[0]])]
        headers = {"Idempotency-Key": f"chaos-{number}"}
        while not self._stop_event.is_set():
            try:
                answer = http.post(self._url("batch-predict"), files=files, headers=headers)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code == 202:
                job_id: str = answer.json()["job_id"]
                with self._ledger.lock:
                    self._ledger.cancelled[job_id] = False
                return job_id
            if answer is not None and answer.status_code != 503:
                self._ledger.wrong.append(f"{answer.status_code} to a batch: {answer.text[:200]}")
                return ""
            self._stop_event.wait(RETRY_SECONDS)
        return ""

    def _cancel(self, http: httpx.Client, job_id: str) -> None:
        """Repeat until the response is 200, or 409 for a job that has ended."""
        while not self._stop_event.is_set():
            try:
                answer = http.delete(self._url(job_id))
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code in (200, 409):
                with self._ledger.lock:
                    self._ledger.cancelled[job_id] = answer.status_code == 200
                return
            self._stop_event.wait(RETRY_SECONDS)
        # The response is lost, so both outcomes are right.
        with self._ledger.lock:
            del self._ledger.cancelled[job_id]

    def _look(self, http: httpx.Client, job_id: str) -> None:
        try:
            answer = http.get(self._url(job_id))
        except httpx.TransportError:
            return
        if answer.status_code == 200:
            self._ledger.note(answer.json())
        elif answer.status_code != 503:
            self._ledger.wrong.append(f"{job_id}: {answer.status_code} to a look")

    def _url(self, end: str) -> str:
        return f"{self._draw.choice(self._base_urls)}/api/v1/jobs/{end}"
