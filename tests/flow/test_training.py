"""Training with real processes, which are killed while it runs."""

import random
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.batches import archive
from tests.support.pictures import picture, sha256
from tests.support.stack import Stack, until
from tests.support.training import BLUE, RED, pictures

JOBS, MODELS = "/api/v1/jobs", "/api/v1/models"
TIMEOUT = 120.0


@pytest.fixture(params=["embedded", "emulator"])
def backend(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings that choose the backend."""
    if request.param == "embedded":
        return {}
    namespace: dict[str, str] = request.getfixturevalue("own_namespace")
    return {**namespace, "DELIVERY_ATTEMPTS": "100"}


def trained(stack: Stack, each: int, name: str = "moods") -> str:
    """The id of a new training of `each` drawn pictures for each of two labels."""
    files = {
        f"{label}/{number}.jpg": data for number, (data, label) in enumerate(pictures(each).items())
    }
    answer = stack.api.post(
        f"{JOBS}/train-model/zip?name={name}",
        content=archive(files),
        headers={"Content-Type": "application/zip"},
    )
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["job_id"]
    return job_id


def job_of(stack: Stack, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = stack.api.get(f"{JOBS}/{job_id}").json()
    return job


def ended(stack: Stack, job_id: str) -> dict[str, Any]:
    until(lambda: job_of(stack, job_id)["completed_at"], "the training ends", TIMEOUT)
    return job_of(stack, job_id)


def fit_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "worker.training.process" in (process.info["cmdline"] or []):
            found.append(process)
    return found


def test_folders_become_a_model_that_classifies(
    tmp_path: Path, colour_bundle: Path, backend: dict[str, str]
) -> None:
    with Stack(tmp_path, colour_bundle, **backend) as stack:
        job = ended(stack, trained(stack, 6))
        assert job["status"] == "completed", job
        model = stack.api.get(f"{MODELS}/moods").json()
        assert model["active_version"] == job["trained_model"]
        for colour, label in ((RED, "warm"), (BLUE, "cool")):
            data = picture(99, colour)
            answer = stack.api.post(
                "/api/v1/images?model=moods",
                content=data,
                headers={"Content-Type": "image/jpeg", "Prefer": "wait=30"},
            )
            assert answer.json()["annotations"][0]["label"] == label, answer.text
            assert answer.json()["image_hash"] == sha256(data)


def test_model_appears_once_although_processes_are_killed(
    tmp_path: Path, colour_bundle: Path, backend: dict[str, str]
) -> None:
    """The worker, the queue and the fit are killed at random times, again and again."""
    draw = random.Random(1)
    with Stack(tmp_path, colour_bundle, **backend) as stack:
        ids = [trained(stack, each) for each in (20, 21)]
        for _ in range(6):
            if all(job_of(stack, each)["completed_at"] for each in ids):
                break
            until(lambda: True, "", 1)
            victim = draw.choice([name for name in stack.names if name != "api"])
            stack.kill(victim)
            stack.start(victim)
        jobs = [ended(stack, each) for each in ids]
        assert [job["status"] for job in jobs] == ["completed", "completed"], jobs
        versions = stack.api.get(f"{MODELS}/moods").json()["versions"]
        assert sorted(each["job_id"] for each in versions) == sorted(ids)
        assert {each["id"] for each in versions} == {job["trained_model"] for job in jobs}
