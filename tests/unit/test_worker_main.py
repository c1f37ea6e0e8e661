"""The worker service: readiness, and stores that do not answer."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.bundles.bundle import read_bundle
from core.domain.records import Status
from tests.support.problems import assert_problem
from tests.support.worker import (
    RunningWorker,
    running_worker,
    settings_in,
)


@pytest.fixture
async def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningWorker]:
    monkeypatch.setattr("worker.tasks.classify_image.DUPLICATE_WAIT_SECONDS", 0.3)
    async with running_worker(settings_in(tmp_path)) as running:
        yield running


async def test_ready_when_every_part_answers(worker: RunningWorker) -> None:
    answer = await worker.client.get("/ready")
    assert answer.status_code == 200
    assert set(answer.json()["checks"]) == {"records", "blobs", "queue", "model"}


@pytest.mark.parametrize("fault", ["absent", "altered"])
async def test_not_ready_with_an_unusable_bundle(tmp_path: Path, fault: str) -> None:
    settings = settings_in(tmp_path)
    bundle = Path(settings.model_uri)
    model = read_bundle(bundle).identity
    if fault == "absent":
        shutil.rmtree(bundle)
    else:
        (bundle / "labels.txt").write_text("a\nb\nc\nd\ne\nf\n")
    async with running_worker(settings) as worker:
        assert (await worker.client.get("/health")).status_code == 204
        answer = await worker.client.get("/ready")
        assert answer.status_code == 503
        checks = answer.json()["checks"]
        assert {name for name, outcome in checks.items() if outcome != "ok"} == {"model"}
        key = await worker.submit(model=model)
        assert_problem(await worker.push(key), 503, "model_unavailable")
        assert (await worker.record(key)).attempts == 0


async def test_closed_record_store_is_503(tmp_path: Path) -> None:
    app_settings = settings_in(tmp_path)
    async with running_worker(app_settings) as worker:
        key = await worker.submit()
        await worker.backend.records._database.close()  # type: ignore[attr-defined]  # the fault
        assert_problem(await worker.push(key), 503, "unavailable")
        assert_problem(await worker.dead_letter(key), 503, "unavailable")
        assert_problem(await worker.client.post("/reconcile"), 503, "unavailable")
        assert (await worker.client.get("/ready")).json()["checks"]["records"] != "ok"
    async with running_worker(app_settings) as worker:
        assert (await worker.record(key)).status is Status.PENDING
        assert (await worker.push(key)).status_code == 204
