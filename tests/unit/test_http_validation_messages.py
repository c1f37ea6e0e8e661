"""Validation errors name the field, and say in words what is allowed."""

import json
import re
from typing import Any

import pytest

from core.http.validation_messages import message_of
from tests.support.api import Api
from tests.support.problems import assert_problem

HASH = "0" * 64
JOBS, HOOKS, LOOKUP = "/api/v1/jobs", "/api/v1/webhooks", "/api/v1/images/lookup"


@pytest.mark.parametrize(
    ("method", "url", "body", "field", "message"),
    [
        ("GET", f"{JOBS}?limit=0", None, "limit", "must be at least 1"),
        ("GET", f"{JOBS}?limit=201", None, "limit", "must be at most 200"),
        ("GET", f"{JOBS}?limit=ten", None, "limit", "must be a whole number"),
        (
            "GET",
            f"{JOBS}?status=done",
            None,
            "status",
            "must be pending, running, completed, failed or cancelled",
        ),
        ("GET", f"{JOBS}?type=train", None, "type", "must be "),
        ("GET", "/api/v1/dead-letters?since=x", None, "since", "must be a time, such as"),
        ("GET", "/api/v1/dead-letters?code=A+B", None, "code", "must be an error code"),
        ("GET", "/api/v1/dead-letters/x", None, "id", "must be the id of a dead letter"),
        ("POST", HOOKS, {}, "url", "is required"),
        ("POST", HOOKS, [], "body", "must be a JSON object"),
        ("POST", HOOKS, {"url": 1}, "url", "must be text"),
        ("POST", HOOKS, {"url": "x" * 3000}, "url", "must have at most 2048 characters"),
        ("POST", HOOKS, {"url": "x", "events": []}, "events", "must have at least 1 element"),
        ("POST", HOOKS, {"url": "x", "event": "job.failed"}, "unknown field", "mean 'events'?"),
        ("POST", HOOKS, {"url": "x", "zzz": 1}, "unknown field", "are description, events, url"),
        ("POST", LOOKUP, {"image_hashes": 1}, "image_hashes", "must be a list"),
        ("POST", LOOKUP, {"image_hashes": ["cat"]}, "image_hashes.0", "64 hexadecimal digits"),
        ("POST", f"{JOBS}/batch-predict", {"priorty": "low"}, "unknown field", "mean 'priority'?"),
        ("POST", f"{JOBS}/batch-predict", {"priority": "x"}, "priority", "high, normal or low"),
        (
            "POST",
            f"{JOBS}/batch-predict",
            {"image_hashes": [{"image_hash": HASH, "meta": {}}]},
            "image_hashes.0.unknown field",
            "is not allowed here",
        ),
    ],
)
async def test_error_names_the_field_and_what_is_allowed(
    api: Api, method: str, url: str, body: Any, field: str, message: str
) -> None:
    answer = await api.client.request(method, url, **({} if body is None else {"json": body}))
    problem = assert_problem(answer, 422, "invalid_request")
    assert (problem["field"], problem["errors"][0]["field"]) == (field, field)
    assert message in problem["errors"][0]["message"]
    assert problem["detail"].startswith(f"{field}: ")


async def test_messages_have_no_patterns_and_no_terms_of_the_library(api: Api) -> None:
    """The test covers every declared body and every parameter of the service."""
    document = (await api.client.get("/openapi.json")).json()
    wrong: list[Any] = [None, 1, "", "\ud800", "x" * 5000, [], [1], {}, {"x": 1}, True, -1, 1e300]
    seen = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            url = re.sub(r"\{\w+\}", HASH, path)
            schema = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if schema is not None:
                name = schema["schema"]["$ref"].rpartition("/")[2]
                members = document["components"]["schemas"][name]["properties"]
                for member in members:
                    for value in wrong:
                        body = json.dumps({member: value}).encode()
                        answer = await api.client.request(method, url, content=body)
                        seen += check(answer.text)
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "query" and "stream" not in path:
                    for value in ("\x00", "x" * 5000, "-1", "[]"):
                        query = {parameter["name"]: value}
                        answer = await api.client.request(method, url, params=query)
                        seen += check(answer.text)
    assert seen > 100


def check(text: str) -> int:
    """Whether the response is a validation error. Fails if its words are the library's."""
    problem = json.loads(text or "{}")
    if problem.get("code") != "invalid_request":
        return 0
    for term in ("Input should", "String should", "pattern", "valid integer", "ensure", "type="):
        assert term not in problem["detail"], problem["detail"]
    return 1


def test_unknown_kinds_keep_the_words_of_the_library() -> None:
    error = {"type": "new_kind", "loc": ("body", "x"), "msg": "Input should be a cat"}
    assert message_of(error) == "must be a cat"
