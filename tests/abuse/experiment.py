"""Uploads hostile images to real processes, and checks what must hold for each."""

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.abuse.hostile import Hostile
from tests.abuse.processes import MEBIBYTE, MemoryWatch
from tests.support.pictures import sha256
from tests.support.plain_http import NO_TLS
from tests.support.stack import Stack

SENDERS = 4
BACKLOG = 64  # accepted images that have not ended; at more, senders wait
END_SECONDS = 300.0  # seconds from the last upload until every record ends
ANSWER_SECONDS = 60.0
# The resident bytes that no input may exceed. A picture of 64 megapixels, the limit, has 256 MB in
# RGBA, and a decoder holds up to four such buffers.
MOST_MEMORY = {
    "api": 600 * MEBIBYTE,
    "worker": 400 * MEBIBYTE,
    "worker's children": 1500 * MEBIBYTE,
}
# The stack's own delivery is quick: a lease of two seconds would end during a large picture. Longer
# than production's: a busy machine may take ten times as long over a picture at the limit.
SETTINGS = {
    "WORKER_CONCURRENCY": 0,  # one classifier process for each core
    "LEASE_SECONDS": 90,  # seconds, of which classification may take 60
    "DELIVERY_ATTEMPTS": 10,
    "MAX_BACKOFF_SECONDS": 2,
}


@dataclass
class Outcome:
    """The outcomes of the inputs. `wrong` is empty if every promise held."""

    inputs: int = 0
    seconds: float = 0.0
    families: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)  # by status and code
    ended: Counter[str] = field(default_factory=Counter)  # by status and error code
    server_errors: int = 0
    classifiers_lost: int = 0
    slowest_answer: tuple[float, str] = (0.0, "")
    slowest_image: tuple[float, str] = (0.0, "")
    peaks: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        return not self.wrong


class Abuse:
    """Sends `images` to a running `stack` and follows each one until it ends.

    Calls `progress` with the number of responses.
    """

    def __init__(self, stack: Stack, progress: Callable[[int], None] = lambda sent: None) -> None:
        self._stack = stack
        self._progress = progress
        self._outcome = Outcome()
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._open: dict[str, Hostile] = {}  # accepted, by hash
        self._names: dict[str, str] = {}
        self._refused: dict[str, str] = {}

    def run(self, images: Iterable[Hostile]) -> Outcome:
        stack, outcome = self._stack, self._outcome
        processes = {name: each.pid for name, each in stack.processes.items()}
        memory = MemoryWatch(processes)
        memory.start()
        began = time.monotonic()
        limits = httpx.Limits(max_connections=SENDERS + 1)
        with (
            httpx.Client(
                base_url=stack.api.base_url, timeout=ANSWER_SECONDS, limits=limits, verify=NO_TLS
            ) as http,
            ThreadPoolExecutor(SENDERS) as senders,
        ):
            self._http = http
            for _ in senders.map(self._send, images):
                pass
            self._follow(0)
            self._look_for_traces_of_the_refused()
        memory.stop()
        outcome.seconds = time.monotonic() - began
        outcome.peaks = memory.peaks
        self._judge_processes(processes)
        self._judge_what_is_stored()
        self._read_logs()
        return outcome

    # --- Sending ----------------------------------------------------------------------------------

    def _send(self, image: Hostile) -> None:
        data = image.make()
        image_hash = sha256(data)
        with self._lock:
            if image_hash in self._seen:
                return
            self._seen.add(image_hash)
            self._names[image_hash] = f"{image.family}: {image.name}"
        self._follow(BACKLOG)
        began = time.monotonic()
        answer = self._post(image, data)
        if answer is not None:
            self._note(image, image_hash, answer, time.monotonic() - began)

    def _post(self, image: Hostile, data: bytes) -> httpx.Response | None:
        headers = {"Content-Type": "image/jpeg"}
        try:
            while True:
                answer = self._http.post("/api/v1/images", content=data, headers=headers)
                if answer.status_code != 503 or "retry-after" not in answer.headers:
                    return answer
                time.sleep(0.2)
        except httpx.HTTPError as error:
            self._wrong(f"no answer ({error!r}) to {image.family}: {image.name}")
            return None

    def _note(
        self, image: Hostile, image_hash: str, answer: httpx.Response, seconds: float
    ) -> None:
        name = self._names[image_hash]
        with self._lock:
            outcome = self._outcome
            outcome.inputs += 1
            outcome.families[image.family] += 1
            outcome.slowest_answer = max(outcome.slowest_answer, (seconds, name))
            self._progress(outcome.inputs)
            if answer.status_code == 202:
                self._open[image_hash] = image
                return
            problem = _problem(answer)
            if problem is None:
                self._wrong(f"{answer.status_code} {answer.text[:200]} to {name}")
            else:
                outcome.refused[f"{answer.status_code} {problem['code']}"] += 1
                self._refused[image_hash] = name

    # --- Following --------------------------------------------------------------------------------

    def _follow(self, most: int) -> None:
        """Poll the accepted images until at most `most` of them have not ended."""
        ends = time.monotonic() + END_SECONDS
        while len(self._open) > most:
            with self._lock:
                waiting = list(self._open)
            for image_hash in waiting:
                self._ask(image_hash)
            if time.monotonic() > ends:
                with self._lock:
                    self._wrong_all(f"never ended: {self._names[each]}" for each in self._open)
                    self._open.clear()
            time.sleep(0.1)

    def _ask(self, image_hash: str) -> None:
        answer = self._http.get(f"/api/v1/images/{image_hash}")
        if answer.status_code == 202:
            return
        with self._lock:
            if self._open.pop(image_hash, None) is None:
                return  # another sender has its result
        if answer.status_code != 200:
            self._wrong(f"{answer.status_code} for an accepted {self._names[image_hash]}")
            return
        told = answer.json()
        error = told["error"]
        with self._lock:
            self._outcome.ended[told["status"] + (f" {error['code']}" if error else "")] += 1
        if error is not None and error["retryable"]:
            self._wrong(f"a retryable {error['code']} from {self._names[image_hash]}")

    def _look_for_traces_of_the_refused(self) -> None:
        for image_hash, name in self._refused.items():
            answer = self._http.get(f"/api/v1/images/{image_hash}")
            if answer.status_code != 404:
                self._wrong(f"{answer.status_code} for the refused {name}")

    # --- Judging ----------------------------------------------------------------------------------

    def _judge_processes(self, processes: dict[str, int]) -> None:
        for name, pid in processes.items():
            process = self._stack.processes[name]
            if process.pid != pid or process.poll() is not None:
                self._wrong(f"the {name} did not live through it")
        for name, most in MOST_MEMORY.items():
            peak = self._outcome.peaks[name]
            if peak > most:
                self._wrong(f"{name} took {peak / MEBIBYTE:.0f} MiB")

    def _judge_what_is_stored(self) -> None:
        """Check that records and blobs exist only for images that ended, and no messages.

        An image that succeeded has a thumbnail as well.
        """
        folder = self._stack.folder / "data"
        accepted = sum(self._outcome.ended.values())
        files = [path for path in (folder / "blobs").rglob("*") if path.is_file()]
        thumbnails = sum(1 for path in files if "thumbnails" in path.parts)
        blobs = len(files) - thumbnails
        records = _rows(folder / "records.db", "records")
        if (records, blobs) != (accepted, accepted):
            self._wrong(f"{accepted} images ended, but {records} records and {blobs} blobs")
        if thumbnails != self._outcome.ended["success"]:
            self._wrong(f"{thumbnails} thumbnails of {self._outcome.ended['success']} images")
        ends = (
            time.monotonic() + 60
        )  # the queue records the last acknowledgement after the response
        while (left := _rows(folder / "queue.db", "messages")) and time.monotonic() < ends:
            time.sleep(0.1)
        letters = _rows(folder / "records.db", "dead_letters")
        if left or letters:
            self._wrong(f"{left} messages and {letters} dead letters are left")

    def _read_logs(self) -> None:
        outcome = self._outcome
        for line in self._stack.log_lines("worker"):
            if line["message"] == "classifier process ended":
                outcome.classifiers_lost += 1
            if "milliseconds" in line and line["message"] in ("classified", "image refused"):
                name = self._names.get(line["image_hash"], "")
                seconds = line["milliseconds"] / 1000
                outcome.slowest_image = max(outcome.slowest_image, (seconds, name))
        for name in ("api", "worker"):
            for line in self._stack.log_lines(name):
                status = line["status"] if line["message"] == "request" else 0
                if status >= 500 and status != 503:
                    outcome.server_errors += 1
                    self._wrong(f"the {name} answered {status} to {line['path']}")
            if "Traceback" in self._stack.log(name):
                self._wrong(f"the {name}'s log has a traceback")

    def _wrong(self, what: str) -> None:
        self._outcome.wrong.append(what)

    def _wrong_all(self, whats: Iterable[str]) -> None:
        self._outcome.wrong += whats


def _problem(answer: httpx.Response) -> dict[str, Any] | None:
    """The problem document of a refusal, or None."""
    if not 400 <= answer.status_code < 500:
        return None
    if answer.headers.get("content-type") != "application/problem+json":
        return None
    document: dict[str, Any] = answer.json()
    whole = {"type", "title", "status", "detail", "code"} <= document.keys()
    return document if whole and document["status"] == answer.status_code else None


def _rows(database: Any, table: str) -> int:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)
