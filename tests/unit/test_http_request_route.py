"""Routes without FastAPI's handling of a call refuse what they would not do."""

from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Body, Depends, FastAPI, Query, Request, Response
from pydantic import BaseModel

from core.http.request_route import RequestRoute


class Model(BaseModel):
    name: str = ""


async def endpoint(request: Request) -> Response:
    return Response(request.url.path)


async def dependency() -> None: ...


def router(**options: Any) -> APIRouter:
    return APIRouter(route_class=RequestRoute, **options)


async def test_endpoint_gets_the_request() -> None:
    hot = router()
    hot.get("/a", summary="A", responses={404: {"description": "None"}})(endpoint)
    app = FastAPI()
    app.router.routes.extend(hot.routes)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/a")
    assert (answer.status_code, answer.text) == (200, "/a")
    operation = app.openapi()["paths"]["/a"]["get"]
    assert (operation["operationId"], operation["summary"]) == ("endpoint", "A")


@pytest.mark.parametrize(
    "options",
    [
        {"dependencies": [Depends(dependency)]},
        {"response_model": Model},
        {"response_model_exclude": {"name"}},
        {"response_model_exclude_none": True},
        {"max_body_size": 10},
        {"max_body_size": 0},
        {"form_limits": {"max_files": 1}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_without_an_effect_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        router().post("/a", **options)(endpoint)


def test_options_of_the_router_are_refused() -> None:
    for options in ({"dependencies": [Depends(dependency)]}, {"max_body_size": 10}):
        with pytest.raises(TypeError, match="no effect"):
            router(**options).post("/a")(endpoint)


def test_declared_parameters_are_refused() -> None:
    async def path(request: Request, name: str) -> Response:
        return Response()

    async def query(request: Request, limit: Annotated[int, Query()] = 1) -> Response:
        return Response()

    async def body(request: Request, model: Annotated[Model, Body()]) -> Response:
        return Response()

    async def resolved(request: Request, found: Annotated[None, Depends(dependency)]) -> Response:
        return Response()

    async def model(request: Request) -> Model:
        return Model()

    for wrong in (path, query, body, resolved, model):
        with pytest.raises(TypeError):
            router().post("/{name}")(wrong)
