"""`GET /health`: the process runs. `GET /ready`: everything it depends on answers."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping

import structlog
from fastapi import APIRouter, Response

from core.errors import GlimpseError
from core.http.problems import MEDIA_TYPE, problem_response
from core.http.route_access import public

log = structlog.get_logger(__name__)

Check = Callable[[], Awaitable[None]]
CHECK_TIMEOUT = 2.0  # seconds


def health_routes(checks: Callable[[], Mapping[str, Check]]) -> APIRouter:
    """Routes for the checks that `checks()` returns at the time of the request."""
    router = APIRouter(tags=["operations"])

    @router.head("/health", status_code=204, include_in_schema=False)
    @router.get("/health", status_code=204, summary="Is the process alive?")
    @public
    async def health() -> Response:
        return Response(status_code=204)

    @router.head("/ready", include_in_schema=False)
    @router.get(
        "/ready",
        summary="Does everything it depends on answer?",
        responses={
            503: {
                "description": "Problem details; `checks` names what fails",
                "content": {MEDIA_TYPE: {"schema": {"type": "object", "required": ["checks"]}}},
            }
        },
    )
    @public
    async def ready() -> Response:
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
        body = json.dumps({"status": "ready", "checks": report}).encode()
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
