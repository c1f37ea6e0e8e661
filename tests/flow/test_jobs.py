"""Priorities, delays and deadlines of jobs, with real processes."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import write_slow_bundle
from tests.support.pictures import picture, sha256
from tests.support.stack import Stack, until

TIMEOUT = 120.0
PUSHES = 16
# The most images before an urgent one, with any polling interval of the queue: the pushes in flight
# when it arrives, a turn in which the least urgent go first, and those that arrive with it.
FEW = 3 * PUSHES


@pytest.fixture(params=["embedded", "emulator"])
def backend(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings that choose the backend."""
    if request.param == "embedded":
        return {}
    namespace: dict[str, str] = request.getfixturevalue("own_namespace")
    # Pub/Sub counts a push that finds no worker as a delivery; the embedded queue does not.
    return {**namespace, "DELIVERY_ATTEMPTS": "100"}


def created(stack: Stack, images: list[bytes], cancel_after: str = "", **options: str) -> str:
    """The id of a new job."""
    answer = stack.api.post(
        "/api/v1/jobs/batch-predict",
        files=[("imgs", (f"{n}.jpg", image)) for n, image in enumerate(images)],
        params=options,
        headers={"Cancel-After": cancel_after} if cancel_after else {},
    )
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["job_id"]
    return job_id


def job_of(stack: Stack, job_id: str) -> dict[str, Any]:
    answer = stack.api.get(f"/api/v1/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


def classified(stack: Stack) -> list[str]:
    """The images in the order in which their results were stored."""
    return [
        line["image_hash"] for line in stack.log_lines("worker") if line["message"] == "classified"
    ]


@pytest.mark.timeout(300)
def test_urgent_image_overtakes_a_large_job(tmp_path: Path, backend: dict[str, str]) -> None:
    # The model is so slow that most of the job is left when the urgent image has ended.
    bundle = write_slow_bundle(tmp_path / "slow", rounds=500)
    # The emulators process thirty images per second.
    number = 200 if backend else 1000
    images = [picture(seed=n, size=(48, 48)) for n in range(number)]
    urgent = picture(seed=5000)
    settings = {**backend, "WORKER_CONCURRENCY": "1"}
    with Stack(tmp_path / "stack", bundle, **settings) as stack:
        job_id = created(stack, images, priority="low")
        until(lambda: len(classified(stack)) >= 20, "the job is on its way", TIMEOUT)
        assert stack.upload(urgent).status_code == 202
        before = len(classified(stack))
        assert stack.result(sha256(urgent))["status"] == "success"
        assert job_of(stack, job_id)["progress"] < 90, "the job was too quick to be in the way"
        # The worker logs a result after it has stored it.
        until(lambda: sha256(urgent) in classified(stack), "the worker has logged it")
        assert classified(stack).index(sha256(urgent)) - before <= FEW
        assert stack.api.delete(f"/api/v1/jobs/{job_id}").status_code == 200


@pytest.mark.timeout(300)
def test_delayed_job_starts_on_time_although_all_processes_restart(
    tmp_path: Path, colour_bundle: Path, backend: dict[str, str]
) -> None:
    with Stack(tmp_path, colour_bundle, **backend) as stack:
        for delay in (12, 30, 90):  # seconds, including a restart
            images = [picture(seed=10 * delay + n, size=(48, 48)) for n in range(5)]
            begins = datetime.now(UTC) + timedelta(seconds=delay)
            job_id = created(stack, images, not_before=begins.isoformat())
            for name in stack.names:
                stack.kill(name)
            stack.start(*stack.names)
            status = job_of(stack, job_id)["status"]
            early = {sha256(image) for image in images} & set(classified(stack))
            if datetime.now(UTC) < begins:
                break
        else:
            pytest.fail("the restarts took too long to show anything")
        assert (status, early) == ("pending", set())
        until(lambda: job_of(stack, job_id)["status"] == "completed", "its end", TIMEOUT)
        job = job_of(stack, job_id)
        assert job["succeeded"] == 5
        assert datetime.fromisoformat(job["started_at"]) >= begins.replace(microsecond=0)


@pytest.mark.timeout(300)
def test_nothing_of_a_job_begins_after_its_deadline(
    tmp_path: Path, colour_bundle: Path, backend: dict[str, str]
) -> None:
    # The model is so slow that the job has not ended when the worker is killed.
    bundle = write_slow_bundle(tmp_path / "slow", rounds=1000)
    images = [picture(n, (250, 250, 250), (48, 48)) for n in range(60)]
    with Stack(tmp_path / "stack", bundle, WORKER_CONCURRENCY=1, **backend) as stack:
        job_id = created(stack, images, cancel_after="15s")
        deadline = datetime.fromisoformat(job_of(stack, job_id)["deadline"])
        until(lambda: "job items published" in stack.log("worker"), "its messages", TIMEOUT)
        stack.kill("worker")
        ran = len(classified(stack))
        time.sleep(max(0.0, (deadline - datetime.now(UTC)).total_seconds() + 0.5))
        stack.start("worker")
        until(lambda: job_of(stack, job_id)["status"] == "cancelled", "its end", TIMEOUT)
        job = job_of(stack, job_id)
        assert job["error"]["code"] == "deadline_exceeded"
        assert job["succeeded"] + job["cancelled"] == job["total"] == 60
        assert job["cancelled"] > 0, "the job was too quick to be cut off"
        until(lambda: all(image_ended(stack, image) for image in images), "all end", TIMEOUT)
        assert len(classified(stack)) == ran


def image_ended(stack: Stack, image: bytes) -> bool:
    answer = stack.api.get(f"/api/v1/images/{sha256(image)}")
    return answer.status_code == 200 and answer.json()["status"] in ("success", "error")
