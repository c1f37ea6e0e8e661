"""The refusals of both services, `application/problem+json` (RFC 9457)."""

from typing import Any

import httpx


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that `answer` refuses with this status and code, and return the problem.

    An answer to HEAD has no body: only its status is checked, and the problem is empty.
    """
    assert answer.status_code == status, answer.text
    assert answer.headers.get_list("cache-control") == ["no-store"]
    if answer.request.method == "HEAD":
        return {}
    assert answer.headers.get_list("content-type") == ["application/problem+json"]
    problem: dict[str, Any] = answer.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:glimpse:problem:{code}"
    assert problem["title"]
    assert problem["detail"]
    return problem
