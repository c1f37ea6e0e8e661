"""Every error response is a problem document (P7)."""

import inspect
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, HTTPException

from core import errors
from core.errors import GlimpseError
from core.http.problems import install_problem_handlers, problem_response, response_for
from tests.support.problems import assert_problem

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, GlimpseError) and kind is not GlimpseError
]


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    install_problem_handlers(app)

    @app.get("/number/{number}")
    async def number(number: int) -> int:
        return number

    @app.get("/raises/{name}")
    async def raises(name: str) -> None:
        if name == "secret":
            raise RuntimeError("the password is 1234")
        if name == "http":
            raise HTTPException(429, "Slow down.", headers={"Retry-After": "7"})
        kind: type[GlimpseError] = getattr(errors, name)
        if issubclass(kind, errors.Unavailable):  # these say when to retry, and nothing more
            raise kind("What happened.")
        raise kind("What happened.", extra={"more": 1})

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_each_error_has_its_status_and_code(
    client: httpx.AsyncClient, kind: type[GlimpseError]
) -> None:
    answer = await client.get(f"/raises/{kind.__name__}")
    problem = assert_problem(answer, kind.status, kind.code)
    assert problem["detail"] == "What happened."
    assert problem.get("more") == (None if issubclass(kind, errors.Unavailable) else 1)
    assert ("retry-after" in answer.headers) == (kind.status == 503)


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)


async def test_errors_of_the_framework_are_problems(client: httpx.AsyncClient) -> None:
    assert_problem(await client.get("/nowhere"), 404, "not_found")
    answer = await client.post("/number/1")
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD"
    answer = await client.get("/raises/http")
    assert assert_problem(answer, 429, "too_many_requests")["detail"] == "Slow down."
    assert answer.headers["retry-after"] == "7"


async def test_invalid_parameters_are_named(client: httpx.AsyncClient) -> None:
    problem = assert_problem(await client.get("/number/one"), 422, "invalid_request")
    assert isinstance(problem["errors"], list)
    assert problem["errors"][0]["field"] == "number"


async def test_unexpected_error_reveals_nothing(client: httpx.AsyncClient) -> None:
    answer = await client.get("/raises/secret")
    assert_problem(answer, 500, "internal_error")
    assert "1234" not in answer.text


def test_retry_after_is_in_seconds() -> None:
    assert response_for(errors.Unavailable("Busy.")).headers["retry-after"] == "1"
    assert response_for(errors.Unavailable("Busy.", retry_after=9)).headers["retry-after"] == "9"
    assert "retry-after" not in response_for(errors.NotFound("Gone.")).headers


def test_headers_can_be_added() -> None:
    response = problem_response(418, "teapot", "Teapot", "Short.", headers={"X-Spout": "1"})
    assert response.headers["x-spout"] == "1"
