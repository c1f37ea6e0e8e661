"""`GET /health`: the process runs. `GET /ready`: everything that it depends on answers."""

import asyncio
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


class Readiness(BaseModel):
    """A service that is ready."""

    status: Literal["ready"] = "ready"
    checks: dict[str, str] = Field(
        description="`ok` for each dependency", examples=[{"records": "ok"}]
    )


def health_routes(checks: Callable[[], Mapping[str, Check]]) -> APIRouter:
    """Return the routes. `checks()` is called for each request."""
    router = APIRouter(tags=["operations"])

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
        named = checks()
        outcomes = await asyncio.gather(*(_outcome(name, named[name]) for name in named))
        report = dict(zip(named, outcomes, strict=True))
        failing = [name for name, outcome in report.items() if outcome != "ok"]
        if failing:
            return problem_response(
                503,
                "not_ready",
                "Not ready",
                f"Failing: {', '.join(failing)}.",
                extra={"checks": report},
                headers={"Retry-After": "1"},
            )
        body = Readiness(checks=report).model_dump_json()
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})

    return router


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
