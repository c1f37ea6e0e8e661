"""The secret that local queues send to the worker, and other protection from forged pushes."""

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.backends.push_secret import FILE, local_push_secret
from core.domain.messages import ClassifyImage
from tests.support.problems import assert_problem
from tests.support.worker import RunningWorker, body, running_worker, settings_in

PATHS = (
    *("/generate_annotations", "/generate_annotations_dlq", "/jobs", "/notifications"),
    *("/reconcile", "/schedule"),
)
FORGED = [
    {},
    {"Authorization": "Bearer "},
    {"Authorization": f"Bearer {'0' * 64}"},
    {"Authorization": "Basic Og=="},
    {"Authorization": "Bearer \xff"},
]


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[RunningWorker]:
    async with running_worker(settings_in(tmp_path)) as running:
        yield running


@pytest.mark.parametrize("headers", FORGED)
@pytest.mark.parametrize("path", PATHS)
async def test_request_without_the_secret_is_refused(
    worker: RunningWorker, path: str, headers: dict[str, str]
) -> None:
    key = await worker.submit()
    forged = body(attributes=ClassifyImage(key).attributes())
    del worker.client.headers["Authorization"]
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    for query in ("", "?token=", "?token=wrong"):
        answer = await worker.client.post(path + query, content=forged, headers=raw)
        assert_problem(answer, 401, "unauthenticated")
    record = await worker.record(key)
    assert (record.attempts, record.error) == (0, None)


async def test_forged_dead_letter_does_not_fail_an_image(worker: RunningWorker) -> None:
    key = await worker.submit()
    genuine = worker.client.headers.pop("Authorization")
    assert_problem(await worker.dead_letter(key), 401, "unauthenticated")
    assert (await worker.record(key)).error is None
    worker.client.headers["Authorization"] = genuine
    assert (await worker.dead_letter(key)).status_code == 204
    assert (await worker.record(key)).error is not None


async def test_emulator_sends_the_secret_in_the_address(worker: RunningWorker) -> None:
    _, secret = worker.client.headers.pop("Authorization").split()
    key = await worker.submit()
    pushed = body(attributes=ClassifyImage(key).attributes())
    answer = await worker.client.post(f"/generate_annotations?token={secret}", content=pushed)
    assert answer.status_code == 204


async def test_secret_is_created_once_and_private(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    secret = local_push_secret(settings)
    assert len(secret) == 64
    assert local_push_secret(settings) == secret
    assert stat.S_IMODE((settings.data_dir / FILE).stat().st_mode) == 0o600


async def test_worker_on_loopback_serves_only_names_of_this_machine(
    worker: RunningWorker,
) -> None:
    for host, status in (("localhost:8081", 200), ("evil.example", 400), ("127.0.0.1.a.b", 400)):
        for method, path in (("GET", "/metrics"), ("POST", "/reconcile")):
            answer = await worker.client.request(method, path, headers={"Host": host})
            assert answer.status_code == status, (host, path)


async def test_worker_serves_the_host_of_its_push_endpoint(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, host="0.0.0.0", push_endpoint="http://worker:8081")
    async with running_worker(settings) as worker:
        for host, status in (("worker:8081", 200), ("127.0.0.1:8081", 200), ("evil.example", 400)):
            answer = await worker.client.post("/reconcile", headers={"Host": host})
            assert answer.status_code == status, host


async def test_page_of_another_origin_cannot_call_the_worker(worker: RunningWorker) -> None:
    """The secret does not help: it may have leaked into the address of a page."""
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        for path in PATHS:
            answer = await worker.client.post(path, content=b"{}", headers=headers)
            assert_problem(answer, 403, "cross_origin_request")
