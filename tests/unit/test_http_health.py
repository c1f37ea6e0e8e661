"""`/health`, `/started` and `/ready`."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

import core.http.health
from core.errors import Unavailable
from core.http.health import Check, health_routes
from tests.support.problems import assert_problem


async def fine() -> None:
    return None


async def unavailable() -> None:
    raise Unavailable("The queue does not answer.")


async def broken() -> None:
    raise RuntimeError("password 1234")


async def stuck() -> None:
    await asyncio.Event().wait()


def client_of(checks: dict[str, Check]) -> httpx.AsyncClient:
    app = FastAPI()
    app.include_router(health_routes(lambda: checks))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def ask(path: str, **checks: Check) -> httpx.Response:
    async with client_of(checks) as client:
        return await client.get(path)


async def test_health_checks_no_dependency() -> None:
    answer = await ask("/health", queue=stuck)
    assert answer.status_code == 204
    assert answer.content == b""


async def test_service_is_ready_if_every_check_passes() -> None:
    answer = await ask("/ready", records=fine, queue=fine)
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "checks": {"records": "ok", "queue": "ok"}}
    assert answer.headers["cache-control"] == "no-store"


async def test_not_ready_names_failing_checks_without_private_details(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(core.http.health, "CHECK_TIMEOUT", 0.05)
    answer = await ask("/ready", records=fine, queue=unavailable, blobs=broken, model=stuck)
    problem = assert_problem(answer, 503, "not_ready")
    assert answer.headers["retry-after"] == "1"
    assert problem["detail"] == "Failing: queue, blobs, model."
    assert problem["checks"] == {
        "records": "ok",
        "queue": "The queue does not answer.",
        "blobs": "failed",
        "model": "no answer within 0.05 s",
    }
    assert "1234" not in answer.text


async def test_start_depends_on_the_model_only() -> None:
    assert (await ask("/started", records=stuck, queue=broken, model=fine)).status_code == 204
    problem = assert_problem(
        await ask("/started", records=fine, model=unavailable), 503, "not_ready"
    )
    assert problem["checks"] == {"model": "The queue does not answer."}


async def test_concurrent_requests_share_one_check() -> None:
    checking, answering, checked = asyncio.Event(), asyncio.Event(), 0

    async def count() -> None:
        nonlocal checked
        checked += 1
        checking.set()
        await answering.wait()

    async with client_of({"records": count}) as client:
        asked = [asyncio.create_task(client.get("/ready")) for _ in range(50)]
        await checking.wait()
        asked[0].cancel()  # the other callers still get their answers
        answering.set()
        answers = await asyncio.gather(*asked[1:])
        assert {answer.status_code for answer in answers} == {200}
    assert checked == 1


@pytest.mark.parametrize("failing", [False, True])
async def test_report_is_kept_for_some_seconds(
    monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    now, checked = 1000.0, 0
    monkeypatch.setattr("core.http.health.time", SimpleNamespace(monotonic=lambda: now))

    async def check() -> None:
        nonlocal checked
        checked += 1
        if failing:
            raise Unavailable("It is down.")

    keep = core.http.health.KEEP_FAILURE_SECONDS if failing else core.http.health.KEEP_SECONDS
    async with client_of({"queue": check}) as client:
        for _ in range(20):
            assert (await client.get("/ready")).status_code == (503 if failing else 200)
        assert checked == 1
        now += keep
        failing = not failing
        assert (await client.get("/ready")).status_code == (503 if failing else 200)
    assert checked == 2
