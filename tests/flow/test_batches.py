"""Batches against `kill -9`: correct totals, one inference per image, complete results in order."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.bundles import write_slow_bundle
from tests.support.pictures import picture, sha256
from tests.support.process import with_constants
from tests.support.seeds import drawn_seed
from tests.support.stack import Stack, until
from worker.inference.protocol import MAX_BATCH

# Several pages of a job's items for both backends. The emulators take a second for thirty.
ITEMS = {"embedded": 1000, "emulator": 220}
# Jobs, and images in each: enough that no job ends before its cancellation.
CANCELLED = {"embedded": (3, 300), "emulator": (2, 100)}
TERMINAL = {"completed", "failed", "cancelled"}
PROCESSES = 2  # workers
TIMEOUT = 240.0  # seconds, for a job on the emulators of a busy machine
# Faults happen at a percentage of a job. The model is slow, so the rest takes seconds on any
# machine, and the test sees the percentage in time.
ROUNDS = 100


@pytest.fixture(params=["embedded", "emulator"])
def backend(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings that choose the backend."""
    if request.param == "embedded":
        return {}
    namespace: dict[str, str] = request.getfixturevalue("own_namespace")
    # Pub/Sub counts a push that finds no worker as a delivery; the embedded queue does not.
    # The deadline includes the wait for one of the emulator's two pushes.
    return {**namespace, "DELIVERY_ATTEMPTS": "100", **with_constants(MIN_ACK_DEADLINE=600)}


@pytest.fixture
def slow_bundle(tmp_path: Path) -> Path:
    return write_slow_bundle(tmp_path / "slow", ROUNDS)


@dataclass
class Batch:
    """Files of a job.

    Of twenty, six are known images, two repeat another file, one is broken and eleven are new.
    """

    files: list[bytes]
    known: list[bytes]
    new: set[str] = field(default_factory=set)
    broken: set[int] = field(default_factory=set)


def batch(seed: int, items: int) -> Batch:
    draw = random.Random(seed)
    part = items // 20
    known = [picture(seed=n, size=(40, 40)) for n in range(6 * part)]
    new = [picture(seed=10_000 + n, size=(40, 40)) for n in range(11 * part)]
    # The API refuses half of the broken files by their first bytes; decoding the others fails.
    broken = [b"no picture %d" % n for n in range(part // 2)]
    broken += [picture(seed=20_000 + n, size=(40, 40))[:-200] for n in range(part - part // 2)]
    files = [*known, *new, *broken, *draw.choices(known + new, k=2 * part)]
    draw.shuffle(files)
    bad = {sha256(each) for each in broken}
    where = {n for n, each in enumerate(files) if sha256(each) in bad}
    return Batch(files, known, {sha256(each) for each in new}, where)


def submit(stack: Stack, files: list[bytes], **headers: str) -> dict[str, Any]:
    """Create the job with an idempotency key, so that a repetition creates no second one."""
    upload = [("imgs", (f"{n:04d}.jpg", data)) for n, data in enumerate(files)]
    path = "/api/v1/jobs/batch-predict"
    # The emulators store thirty images a second, and fewer on a busy machine.
    create = partial(stack.api.post, path, files=upload, headers=headers, timeout=TIMEOUT)
    return document(stack.retry(create), 202)


def job_of(stack: Stack, job_id: str) -> dict[str, Any]:
    return document(stack.retry(partial(stack.api.get, f"/api/v1/jobs/{job_id}")), 200)


def document(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    return body


def progress(stack: Stack, job_id: str, timeout: float = TIMEOUT) -> Iterator[dict[str, Any]]:
    """The states of the job until it ends."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        job = job_of(stack, job_id)
        yield job
        if job["status"] in TERMINAL:
            return
        time.sleep(0.05)
    raise AssertionError(f"the job did not end: {job}")


def ended(stack: Stack, job_id: str) -> dict[str, Any]:
    *_, job = progress(stack, job_id)
    return job


def results(stack: Stack, job_id: str) -> list[dict[str, Any]]:
    answer = stack.api.get(
        f"/api/v1/jobs/{job_id}/results", headers={"Accept": "application/x-ndjson"}
    )
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.text.splitlines()]


def stored_results(stack: Stack) -> Counter[str]:
    """The number of results that the workers stored for each image, from their logs."""
    return Counter(
        line["image_hash"] for line in stack.log_lines("worker") if line["message"] == "classified"
    )


@pytest.mark.timeout(480)
def test_job_completes_although_every_process_is_killed(
    tmp_path: Path, slow_bundle: Path, backend: dict[str, str]
) -> None:
    seed = drawn_seed("images")
    items = ITEMS[backend.get("BACKEND", "embedded")]
    wanted, draw = batch(seed, items), random.Random(seed)
    settings = {**backend, "WORKER_CONCURRENCY": str(PROCESSES)}
    with Stack(tmp_path / "stack", slow_bundle, **settings) as stack:
        first = submit(stack, wanted.known)
        assert ended(stack, first["job_id"])["succeeded"] == len(wanted.known)
        inferences_before = stored_results(stack).total()

        def die_while_it_is_created() -> None:
            time.sleep(draw.uniform(0.1, 0.6))
            stack.kill("api")
            stack.start("api")

        dying = threading.Thread(target=die_while_it_is_created)
        dying.start()
        created = submit(stack, wanted.files, **{"Idempotency-Key": f"batch-{seed}"})
        dying.join()
        # Known images are a third of the job, and end at its beginning. The API is killed last:
        # the others finish the job unobserved while it restarts.
        deaths = [("worker", 5), ("queue", 40), ("worker", 50), ("api", 65)]
        deaths = [(name, percent) for name, percent in deaths if name in stack.names]
        shown = -1
        for job in progress(stack, created["job_id"]):
            assert job["progress"] >= shown, "progress went back"
            shown = job["progress"]
            if deaths and shown >= deaths[0][1]:
                name, percent = deaths.pop(0)
                print(f"{name} dies at {shown} %, wanted {percent} %")
                stack.kill(name)
                stack.start(name)
        assert not deaths, "the job was too quick to be interrupted"
        assert (job["status"], job["progress"]) == ("completed", 100)
        failed = len(wanted.broken)
        assert (job["total"], job["succeeded"], job["failed"], job["cancelled"]) == (
            items,
            items - failed,
            failed,
            0,
        )
        lines = results(stack, created["job_id"])
        assert [line["index"] for line in lines] == list(range(items))
        for number, (line, data) in enumerate(zip(lines, wanted.files, strict=True)):
            assert line["name"] == f"{number:04d}.jpg"
            if number in wanted.broken:
                assert (line["status"], line["annotations"]) == ("failed", [])
                code = line["error"]["code"]
                assert code in ("unsupported_image", "invalid_image", "undecodable_image")
            else:
                assert (line["status"], line["error"]) == ("succeeded", None)
                assert line["image_hash"] == sha256(data)
                assert line["annotations"][0]["label"] == "red"
        # A repetition with the same key gives the same job, and starts nothing.
        again = submit(stack, wanted.files, **{"Idempotency-Key": f"batch-{seed}"})
        assert again["job_id"] == created["job_id"]
        done = stored_results(stack)
    # One stored result each: a second completion would be refused and not logged. A worker that is
    # killed between storing its results and logging them writes no lines about them.
    assert max(done.values()) == 1
    assert set(done) <= wanted.new | {sha256(each) for each in wanted.known}
    unlogged = 2 * (2 * MAX_BATCH * PROCESSES)  # for two such workers
    new = len(wanted.new)
    assert new - unlogged <= done.total() - inferences_before <= new


@pytest.mark.timeout(300)
def test_after_a_cancel_no_item_begins(
    tmp_path: Path, slow_bundle: Path, backend: dict[str, str]
) -> None:
    seed = drawn_seed("images")
    draw = random.Random(seed)
    settings = {**backend, "WORKER_CONCURRENCY": "1"}
    with Stack(tmp_path / "stack", slow_bundle, **settings) as stack:
        jobs, images = CANCELLED[backend.get("BACKEND", "embedded")]
        for number in range(jobs):
            files = [picture(seed=1000 * (seed + number) + n, size=(99, 99)) for n in range(images)]
            created = submit(stack, files)
            cancel_at = draw.uniform(0, 40)  # percent
            for job in progress(stack, created["job_id"]):
                if job["progress"] >= cancel_at:
                    break
            answer = stack.api.delete(f"/api/v1/jobs/{created['job_id']}")
            ran_before = stored_results(stack).total()
            assert answer.status_code == 200, "the job was too quick to be cancelled"
            assert answer.json()["status"] == "cancelled"
            again = stack.api.delete(f"/api/v1/jobs/{created['job_id']}")
            assert again.status_code == 200  # a repeated cancellation changes nothing
            _until_quiet(stack, {sha256(each) for each in files})
            # The groups that the worker was processing may have ended: one in work, and the next.
            assert stored_results(stack).total() - ran_before <= 2 * MAX_BATCH
            # An item counts shortly after its image has ended.
            until(partial(_agrees, stack, created["job_id"]), "items and job agree")
            job = job_of(stack, created["job_id"])
            assert job["status"] == "cancelled"
            assert job["succeeded"] + job["failed"] + job["cancelled"] == job["total"] == images
            assert job["cancelled"] > 0
            # A new job can include the items that did not run.
        last = submit(stack, files)
        assert ended(stack, last["job_id"])["succeeded"] == images


def _agrees(stack: Stack, job_id: str) -> bool:
    """Whether the counts of the job match its results."""
    job = job_of(stack, job_id)
    states = Counter(line["status"] for line in results(stack, job_id))
    return all(states[kind] == job[kind] for kind in ("succeeded", "failed", "cancelled"))


def _until_quiet(stack: Stack, hashes: set[str]) -> None:
    """Wait until all of these images have ended."""
    deadline = time.monotonic() + 120
    unfinished = hashes
    while time.monotonic() < deadline:
        answer = stack.api.post("/api/v1/images/lookup", json={"image_hashes": sorted(unfinished)})
        assert answer.status_code == 200, answer.text
        known = answer.json()["known"]
        found = {h for h, e in known.items() if e["status"] in ("pending", "queued", "running")}
        if not found and unfinished == hashes:
            return
        # A look-up asks the storage for each image without a result. The last one is about all.
        unfinished = found or hashes
        time.sleep(0.2)
    raise AssertionError("images of a cancelled job never ended")
