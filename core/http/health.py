"""Probes: `/health`, the process runs; `/started`, its model is loaded; `/ready`, all parts answer.

A start-up probe must not depend on other services: while one of them is down, a platform would
restart every instance, and could start none.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import structlog
from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from core.errors import GlimpseError
from core.http.openapi import NotReady, problem_content
from core.http.problems import problem_response
from core.http.route_access import public

log = structlog.get_logger(__name__)

Check = Callable[[], Awaitable[None]]
CHECK_TIMEOUT = 2.0  # seconds
# Seconds that a report is kept: probes of several origins must not use up a quota of the services
# that they check. A failure is kept for a shorter time, so that a recovery is noticed soon.
KEEP_SECONDS, KEEP_FAILURE_SECONDS = 5.0, 1.0
STARTED = ("model",)  # checks of the process itself


class Readiness(BaseModel):
    """A service that is ready."""

    status: Literal["ready"] = "ready"
    checks: dict[str, str] = Field(
        description="`ok` for each dependency", examples=[{"records": "ok"}]
    )


class SharedReport:
    """The outcomes of the checks, by name. One run serves all callers, and the next few seconds."""

    def __init__(self, checks: Callable[[], Mapping[str, Check]]) -> None:
        self._checks = checks
        self._report: Mapping[str, str] = {}
        self._expires_at = 0.0  # in `time.monotonic` seconds
        self._running: asyncio.Task[Mapping[str, str]] | None = None

    async def get(self) -> Mapping[str, str]:
        if time.monotonic() < self._expires_at:
            return self._report
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        # A caller that disconnects does not cancel the run of the others.
        return await asyncio.shield(self._running)

    async def _run(self) -> Mapping[str, str]:
        report = await _outcomes(self._checks())
        failed = any(outcome != "ok" for outcome in report.values())
        self._report = report
        self._expires_at = time.monotonic() + (KEEP_FAILURE_SECONDS if failed else KEEP_SECONDS)
        return report


def health_routes(checks: Callable[[], Mapping[str, Check]]) -> APIRouter:
    """Return the routes. `checks()` gives the checks of the running service."""
    router = APIRouter(tags=["operations"])
    shared = SharedReport(checks)

    @router.head("/health", status_code=204, include_in_schema=False)
    @router.get(
        "/health",
        status_code=204,
        operation_id="get_health",
        summary="Check that the process runs",
        description="For load balancers. It needs no key.",
    )
    @public
    async def get_health() -> Response:
        return Response(status_code=204)

    @router.head("/started", status_code=204, include_in_schema=False)
    @router.get(
        "/started",
        status_code=204,
        operation_id="get_startup",
        summary="Check that the process has started",
        description="For start-up probes. It depends on no other service and needs no key.",
        responses={
            503: {
                "description": "The model is not loaded",
                "content": problem_content(NotReady),
            },
        },
    )
    @public
    async def get_startup() -> Response:
        named = checks()
        report = await _outcomes({name: named[name] for name in STARTED if name in named})
        return _not_ready(report) or Response(status_code=204)

    @router.head("/ready", include_in_schema=False)
    @router.get(
        "/ready",
        operation_id="get_readiness",
        summary="Check that all dependencies answer",
        description="For load balancers and supervisors. It needs no key.",
        responses={
            200: {"model": Readiness},
            503: {
                "description": "A dependency does not answer",
                "content": problem_content(NotReady),
            },
        },
    )
    @public
    async def get_readiness() -> Response:
        report = await shared.get()
        if (problem := _not_ready(report)) is not None:
            return problem
        body = Readiness(checks=dict(report)).model_dump_json()
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})

    return router


def _not_ready(report: Mapping[str, str]) -> Response | None:
    """The 503 that names the failing checks, or None if there are none."""
    failing = [name for name, outcome in report.items() if outcome != "ok"]
    if not failing:
        return None
    return problem_response(
        503,
        "not_ready",
        "Not ready",
        f"Failing: {', '.join(failing)}.",
        extra={"checks": dict(report)},
        headers={"Retry-After": "1"},
    )


async def _outcomes(checks: Mapping[str, Check]) -> Mapping[str, str]:
    outcomes = await asyncio.gather(*(_outcome(name, check) for name, check in checks.items()))
    return dict(zip(checks, outcomes, strict=True))


async def _outcome(name: str, check: Check) -> str:
    try:
        await asyncio.wait_for(check(), CHECK_TIMEOUT)
    except TimeoutError:
        return f"no answer within {CHECK_TIMEOUT:g} s"
    except GlimpseError as error:
        return error.detail
    except Exception:
        log.exception("readiness check failed", check=name)
        return "failed"
    return "ok"
