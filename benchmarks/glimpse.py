"""A run of Glimpse: API, queue and worker as processes, on the embedded backend."""

import asyncio
import io
import sqlite3
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.batch import WORKERS, Batch, Seen, Survived, digest_labels
from benchmarks.peers import surroundings
from benchmarks.processes import family_memory
from core.backends import open_backend
from core.backends.embedded import RECORDS
from core.domain.policy import DeliveryPolicy
from core.domain.records import PUBLIC_TENANT
from core.settings import Settings
from tests.bench import load
from tests.support.pictures import picture, sha256
from tests.support.stack import Stack

SINGLES, ZIP, HASHES = "singles", "zip", "hashes"

CONNECTIONS = 16
WARM_UPS = 40
POLL_SECONDS = 0.025
RUN_SECONDS = 120.0

JOBS = "/api/v1/jobs/batch-predict"

# The condition of the partial index `unfinished_records`, which alone is read.
_COUNT_UNFINISHED = "SELECT count(*) FROM records WHERE status IN ('pending', 'queued', 'running')"


@dataclass(frozen=True)
class Glimpse:
    """`way` is how the images are sent: SINGLES (one upload each), ZIP (one job with the images),
    or HASHES (one job that names images that are stored already, as those of the peers are).
    """

    way: str

    def measure(self, batch: Batch, folder: Path) -> Seen:
        with _stack(batch, folder) as stack:
            self._prepare(stack, batch)
            began = time.perf_counter()
            latencies, job = self._send(stack, batch)
            accepted = time.perf_counter()
            with _progress(stack, batch, job) as progress:
                left, ended = _wait(progress, 0, RUN_SECONDS)
            if left:
                raise RuntimeError(f"{left} images did not end:\n{stack.log('worker')[-4000:]}")
            memory = {name: family_memory(each.pid) for name, each in stack.processes.items()}
            return Seen(
                accepted - began,
                ended - began,
                latencies,
                memory["worker"],
                sum(memory.values()),
                _checked(stack, batch),
            )

    def survive(self, batch: Batch, folder: Path, timeout: float) -> Survived:
        """Kill the worker when half of the results are stored, and start it again."""
        with _stack(batch, folder) as stack:
            self._prepare(stack, batch)
            _, job = self._send(stack, batch)
            with _progress(stack, batch, job) as progress:
                _wait(progress, len(batch.hashes) // 2, RUN_SECONDS)
                stack.kill("worker")
                killed = time.perf_counter()
                stack.start("worker")
                missing, ended = _wait(progress, 0, timeout)
            return Survived(missing, max(0.0, ended - killed))

    def _prepare(self, stack: Stack, batch: Batch) -> None:
        """Warm up with other images, and store the images that a job names by hash."""
        others = [picture(seed=1_000_000 + n, size=(16, 16)) for n in range(WARM_UPS)]
        for image in others:
            stack.upload(image)
        stack.results(map(sha256, others))
        if self.way == HASHES:
            asyncio.run(_store(stack, batch))

    def _send(self, stack: Stack, batch: Batch) -> tuple[list[float], str]:
        """The seconds that each upload took, or the address of the job."""
        if self.way == SINGLES:
            uploads = [load.multipart("/what/fast", batch.read(each)) for each in batch.hashes]
            seen = load.run(stack.api_port, uploads, CONNECTIONS)
            if set(seen.statuses) != {202}:
                raise RuntimeError(f"Uploads were refused: {seen.statuses}")
            return seen.latencies, ""
        if self.way == ZIP:
            headers = {"Content-Type": "application/zip"}
            answer = stack.api.post(JOBS, content=_zipped(batch), headers=headers)
        else:
            answer = stack.api.post(JOBS, json={"image_hashes": list(batch.hashes)})
        if answer.status_code != 202:
            raise RuntimeError(f"The job was refused: {answer.status_code} {answer.text[:500]}")
        return [], str(answer.json()["poll_url"])


@contextmanager
def _progress(stack: Stack, batch: Batch, job: str) -> Iterator[Callable[[], int]]:
    """A function that returns the number of images without a result.

    It requests the job over HTTP. Without a job it counts the unfinished records in the store, as
    the client of the peers counts keys in Redis: reading the records would take a millisecond an
    image from the processors that the services share.
    """
    if job:

        def ask() -> int:
            answer = stack.api.get(job)
            answer.raise_for_status()
            return left_of(answer.json())

        yield ask
        return
    with closing(sqlite3.connect(_settings(stack).data_dir / RECORDS)) as records:
        records.execute("PRAGMA query_only = ON")

        def count() -> int:
            (left,) = records.execute(_COUNT_UNFINISHED).fetchone()
            return int(left)

        yield count


def _wait(left: Callable[[], int], until: int, timeout: float) -> tuple[int, float]:
    """Return once at most `until` are left, or nothing has ended for `timeout` seconds.

    Returns how many are left, and the time of the last result.
    """
    now_left, seen = left(), time.perf_counter()
    while now_left > until and time.perf_counter() < seen + timeout:
        time.sleep(POLL_SECONDS)
        before, now_left = now_left, left()
        if now_left < before:
            seen = time.perf_counter()
    return now_left, seen


def left_of(job: dict[str, Any]) -> int:
    """The number of images that the job waits for, as the API reports; 0 when it has ended.

    Raises RuntimeError if it ended without all results.
    """
    if job["status"] in ("pending", "running"):
        # Its status counts, because the last item is stored before the job ends.
        return max(1, int(job["total"]) - int(job["succeeded"]) - int(job["failed"]))
    if job["status"] != "completed":
        raise RuntimeError(f"The job ended as {job}")
    return 0


def _stack(batch: Batch, folder: Path) -> Stack:
    """Glimpse with its defaults, and as many classifiers as the others have workers."""
    policy = DeliveryPolicy()
    return Stack(
        folder,
        batch.bundle,
        LOG_LEVEL="warning",
        THUMBNAILS="false",  # the others make none
        WORKER_CONCURRENCY=WORKERS,
        MAX_BACKOFF_SECONDS=policy.max_backoff,
        LEASE_SECONDS=policy.lease,
    )


def _settings(stack: Stack) -> Settings:
    """The settings of the stack's processes."""
    given = {name.lower(): text for name, text in stack.environment.items()}
    values: dict[str, Any] = {name: given[name] for name in Settings.model_fields if name in given}
    return Settings(_env_file=None, **values)


async def _store(stack: Stack, batch: Batch) -> None:
    async with open_backend(_settings(stack)) as backend:
        for each in batch.hashes:
            await backend.blobs.put(f"{PUBLIC_TENANT}/{each}", batch.read(each), "image/jpeg")


def _zipped(batch: Batch) -> bytes:
    """A zip without compression: JPEG files do not become smaller."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for each in batch.hashes:
            archive.writestr(f"{each}.jpg", batch.read(each))
    return buffer.getvalue()


def _checked(stack: Stack, batch: Batch) -> str:
    """A digest of the results. Raises unless every image is a success."""
    results = stack.results(batch.hashes)
    best: dict[str, str] = {}
    for image_hash, result in results.items():
        if result["status"] != "success":
            raise RuntimeError(f"{image_hash}: {result['error']}")
        annotations: Any = result["annotations"]
        best[image_hash] = annotations[0]["label"]
    return "" if batch.task == surroundings.NO_OP else digest_labels(best)
