"""Routes with declared bodies: the caller is authenticated first, and the body is limited."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import Message

from app.http.json_body import MAX_BYTES
from app.http.middleware import unread_body
from core.domain.principals import ALL_SCOPES, Scope
from tests.support.api import Api, api_settings, bearer, open_api, routes_of
from tests.support.problems import assert_problem

HOOK = {"url": "https://93.184.215.14/hook"}
HOOKS = "/api/v1/webhooks"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def api(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Api]:
    monkeypatch.setattr(unread_body, "LINGER_SECONDS", 0.001)
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        yield api


@pytest.fixture
async def keyed(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Api]:
    monkeypatch.setattr(unread_body, "LINGER_SECONDS", 0.001)
    settings = api_settings(tmp_path, colour_bundle, api_keys="required", rate_limit="off")
    async with open_api(settings) as api:
        yield api


@dataclass
class Exchange:
    """A request whose body is produced by `body`, and what happened."""

    body: Callable[[int], bytes] = lambda number: b"x"
    chunks_read: int = 0  # before the response started
    status: int = 0
    sent: list[Message] = field(default_factory=list)

    async def run(self, app: FastAPI, method: str, path: str, headers: dict[str, str]) -> None:
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [
                (name.lower().encode(), text.encode())
                for name, text in {"Host": "127.0.0.1", **headers}.items()
            ],
            "client": ("127.0.0.1", 1),
            "server": ("api", 80),
        }
        async with asyncio.timeout(30):
            await app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        await asyncio.sleep(0)
        if self.status == 0:
            self.chunks_read += 1
        return {"type": "http.request", "body": self.body(self.chunks_read), "more_body": True}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        self.status = message.get("status", self.status)


def with_body(app: FastAPI) -> list[tuple[str, str, Scope]]:
    return [
        (method, re.sub(r"\{\w+\}", "0" * 64, path), access)
        for method, path, access in routes_of(app)
        if method in ("POST", "PATCH", "PUT") and isinstance(access, Scope)
    ]


async def test_body_of_an_unauthenticated_caller_is_not_read(keyed: Api) -> None:
    routes = with_body(keyed.app)
    assert len(routes) >= 13
    for method, path, _ in routes:
        exchange = Exchange()
        await exchange.run(keyed.app, method, path, {"Content-Length": "100000"})
        assert (exchange.status, exchange.chunks_read) == (401, 0), (method, path)


async def test_body_of_a_caller_without_the_scope_is_not_read(keyed: Api) -> None:
    for method, path, scope in with_body(keyed.app):
        key = await keyed.issue("acme", *(ALL_SCOPES - {scope}))
        exchange = Exchange()
        headers = {"Content-Length": "100000", **bearer(key)}
        await exchange.run(keyed.app, method, path, headers)
        assert (exchange.status, exchange.chunks_read) == (403, 0), (method, path)


async def test_announced_excess_is_refused_without_reading(api: Api) -> None:
    exchange = Exchange()
    await exchange.run(api.app, "POST", HOOKS, {"Content-Length": str(MAX_BYTES + 1), **JSON})
    assert (exchange.status, exchange.chunks_read) == (413, 0)
    problem = exchange.sent[1]["body"]
    assert b'"code": "body_too_large"' in problem


async def test_unannounced_excess_is_refused_while_it_arrives(api: Api) -> None:
    exchange = Exchange(body=lambda number: b" " * 1000)
    await exchange.run(api.app, "POST", HOOKS, {"Transfer-Encoding": "chunked", **JSON})
    assert (exchange.status, exchange.chunks_read) == (413, MAX_BYTES // 1000 + 1)


async def test_body_of_the_largest_size_is_accepted(api: Api) -> None:
    body = b'{"url": "https://93.184.215.14/hook"}'
    answer = await api.client.post(HOOKS, content=body.ljust(MAX_BYTES), headers=JSON)
    assert answer.status_code == 201
    answer = await api.client.post(HOOKS, content=body.ljust(MAX_BYTES + 1), headers=JSON)
    assert_problem(answer, 413, "body_too_large")


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/x+json"]
)
async def test_json_content_types_are_accepted(api: Api, content_type: str) -> None:
    body = b'{"url": "https://93.184.215.14/hook"}'
    answer = await api.client.post(HOOKS, content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"],
)
async def test_body_without_a_json_content_type_is_refused(
    api: Api, content_type: str | None
) -> None:
    """Pages of other origins can send such bodies without asking first."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    body = b'{"url": "https://93.184.215.14/hook"}'
    answer = await api.client.post(HOOKS, content=body, headers=headers)
    problem = assert_problem(answer, 415, "unsupported_media_type")
    assert problem["accepted"] == ["application/json"]
    assert "Content-Type: application/json" in problem["detail"]
    assert (await api.client.get(HOOKS)).json() == {"webhooks": []}


async def test_empty_body_needs_no_content_type(api: Api) -> None:
    hook = (await api.client.post(HOOKS, json=HOOK)).json()
    assert (await api.client.post(f"{HOOKS}/{hook['id']}/rotate")).status_code == 200


@pytest.mark.parametrize("content_type", ["application/json", "application/x+json"])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"\xff\xfe", "body"),
        (b"[" * 10_000, "body"),
        (b"9" * 10_000, "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b'{"url": 7}', "url"),
        (b'{"events": ["no"], "url": "https://93.184.215.14/"}', "events.0"),
        (b'{"url": "https://93.184.215.14/", "password-1234": 1}', "unknown field"),
    ],
)
async def test_invalid_body_is_refused_and_names_the_field(
    api: Api, body: bytes, field: str, content_type: str
) -> None:
    answer = await api.client.post(HOOKS, content=body, headers={"Content-Type": content_type})
    problem = assert_problem(answer, 422, "invalid_request")
    assert problem["field"] == problem["errors"][0]["field"] == field
    assert "1234" not in answer.text
    assert (await api.client.get(HOOKS)).json() == {"webhooks": []}


async def test_number_of_reported_errors_is_bounded(api: Api) -> None:
    body = {"url": "https://93.184.215.14/", "events": ["no"] * 1000}
    problem = assert_problem(await api.client.post(HOOKS, json=body), 422, "invalid_request")
    assert len(problem["errors"]) == 10
    unknown = dict.fromkeys(map(str, range(200)), 0)
    problem = assert_problem(await api.client.post(HOOKS, json=unknown), 422, "invalid_request")
    assert problem["errors"] == [
        {"field": "body", "message": "The object has more than 100 members"}
    ]


async def test_client_that_disconnects_while_sending_is_no_error(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    exchange = Exchange()
    receive = exchange._receive

    async def leave() -> Message:
        return {"type": "http.disconnect"} if exchange.chunks_read else await receive()

    exchange._receive = leave  # type: ignore[method-assign]
    await exchange.run(api.app, "POST", HOOKS, {"Content-Length": "100", **JSON})
    assert exchange.status == 499
    assert "unexpected error" not in capsys.readouterr().out


async def test_responses_may_not_be_cached(api: Api) -> None:
    created = await api.client.post(HOOKS, json=HOOK)
    path = f"{HOOKS}/{created.json()['id']}"
    answers = [created, await api.client.get(HOOKS), await api.client.delete(path)]
    answers += [await api.client.get(path), await api.client.get("/api/v1/jobs")]
    assert [answer.headers.get_list("cache-control") for answer in answers] == [["no-store"]] * 5
