"""Undeclared query parameters are refused, with a suggestion."""

from pathlib import Path
from typing import Any

import pytest

from core.http.query import DeclaredParameters, unknown_parameter
from tests.support.api import NOTHING, Api, api_settings, bearer, open_api, routes_of
from tests.support.pictures import picture, sha256
from tests.support.problems import assert_problem

IMAGE = picture()
ITEM = f"/api/v1/images/{sha256(IMAGE)}"
JOBS = "/api/v1/jobs"
FORM: dict[str, Any] = {"files": {"imgs": ("a.jpg", IMAGE)}}


@pytest.mark.parametrize(
    ("method", "url", "hint"),
    [
        ("POST", f"{JOBS}/batch-predict?prioriy=high", "Did you mean 'priority'?"),
        ("POST", f"{JOBS}/batch-predict?PRIORITY=high", "Did you mean 'priority'?"),
        ("POST", f"{JOBS}/batch-predict?not-before=2027-01-01", "Did you mean 'not_before'?"),
        ("POST", f"{JOBS}/batch-predict?cancel_after=5m", "Send the header Cancel-After."),
        ("POST", f"{JOBS}/batch-predict?idempotencyKey=a", "Send the header Idempotency-Key."),
        ("GET", f"{JOBS}?page=2", "This route takes cursor, limit, status, type."),
        ("GET", f"{JOBS}?limits=2", "Did you mean 'limit'?"),
        ("GET", f"{JOBS}/x/results?statuss=failed", ""),
        ("GET", f"{JOBS}/x/stream?lasteventid=3", "Did you mean 'last_event_id'?"),
        ("GET", f"{ITEM}?modle=x", "Did you mean 'model'?"),
        ("GET", f"{ITEM}?prefer=wait", "Send the header Prefer."),
        ("GET", f"{ITEM}?zzz", ""),
        ("PUT", f"{ITEM}?zzz=", "This route takes labels, min_confidence, model, webhook"),
        ("DELETE", f"{ITEM}?model=x", "This route takes none."),
        ("GET", f"{ITEM}/stream?events=1", ""),
        ("GET", f"{ITEM}/content?size=small", ""),
        ("GET", "/api/v1/dead-letters?resolve=true", "Did you mean 'resolved'?"),
        ("DELETE", f"{ITEM}?zzz=1", ""),
        ("GET", "/local/blobs/public/" + "0" * 64 + "?expire=1&signature=x", "'expires'"),
    ],
)
async def test_unknown_parameter_is_refused_with_a_suggestion(
    api: Api, method: str, url: str, hint: str
) -> None:
    body: dict[str, Any] = FORM if "batch" in url else {"content": IMAGE} if method == "PUT" else {}
    problem = assert_problem(await api.client.request(method, url, **body), 422, "invalid_request")
    assert hint in problem["detail"]
    assert problem["field"] == url.partition("?")[2].partition("=")[0]
    assert api.traces() == NOTHING


async def test_every_route_of_the_api_refuses_unknown_parameters(api: Api) -> None:
    open_to_all = {"/", "/docs", "/openapi.json", "/metrics", "/health", "/started", "/ready"}
    checked = 0
    for method, path, _ in routes_of(api.app):
        if (
            path in open_to_all
            or path.startswith(("/page/", "/local/", "/docs/"))
            or method == "HEAD"
        ):
            continue
        url = path.replace("{", "").replace("}", "")
        answer = await api.client.request(method, f"{url}?no_such_parameter=1")
        problem = assert_problem(answer, 422, "invalid_request")
        assert problem["field"] == "no_such_parameter", path
        checked += 1
    assert checked > 30


async def test_declared_parameters_are_accepted(api: Api) -> None:
    """Parameters come from the function, a dependency, a model, and `openapi_extra`."""
    for url in (
        f"{JOBS}?limit=1&status=&type=batch-predict&cursor=",
        f"{ITEM}?model={api.services.model}",
        f"{ITEM}/stream?last_event_id=1",
        "/api/v1/dead-letters?resolved=true&limit=1",
    ):
        assert (await api.client.get(url)).status_code in (200, 404), url
    answer = await api.client.post(f"{JOBS}/batch-predict?priority=high", **FORM)
    assert answer.status_code == 202


async def test_caller_is_authenticated_before_its_query_is_checked(
    tmp_path: Path, colour_bundle: Path
) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle, api_keys="required")) as api:
        for url in (f"{JOBS}?limits=2", f"{ITEM}?modle=x"):
            assert (await api.client.get(url)).status_code == 401
            key = await api.issue("ada")
            assert (await api.client.get(url, headers=bearer(key))).status_code == 422


def test_names_that_are_not_printable_are_not_repeated() -> None:
    error = unknown_parameter("a\nb" * 100, DeclaredParameters(frozenset({"limit"})))
    assert error.detail == "The query has an unknown parameter. This route takes limit."
    assert error.extra == {"field": "query"}
