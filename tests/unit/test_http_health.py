"""`/health` and `/ready`."""

import asyncio

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


async def ask(path: str, **checks: Check) -> httpx.Response:
    app = FastAPI()
    app.include_router(health_routes(lambda: checks))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
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
