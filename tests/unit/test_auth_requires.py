"""Access to routes: each one declares its scope and enforces it. Administration of keys."""

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from app.main import create_app
from core.clock import utc_now
from core.domain.principals import ALL_SCOPES, Scope, scopes_of
from core.http.route_access import PUBLIC, check_every_route, public
from tests.support.api import NOTHING, Api, api_settings, bearer, open_api, routes_of
from tests.support.clock import MovableClock
from tests.support.pictures import picture, sha256
from tests.support.problems import assert_problem

IMAGE = picture()
HASH = sha256(IMAGE)
PATH = f"/api/v1/images/{HASH}"  # unknown: 404 for authenticated callers
# Routes without a key, and why. Middleware answers HEAD where a route has only GET.
PLAIN = (
    "/health",
    "/started",
    "/ready",
    "/local/blobs/{tenant}/{image_hash}",  # the signature of the link authorizes
)
PAGES = (
    "/",  # the page, which sends its key with each request
    "/page/{path:path}",
    "/docs",
    "/docs/assets/{name}",  # the script and style of that page
    "/openapi.json",
)
OPEN = {("HEAD", path) for path in PLAIN} | {("GET", path) for path in (*PLAIN, *PAGES)}


@pytest.fixture
async def api(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Api]:
    monkeypatch.setattr("app.images.what_routes.SLOW_WAIT_SECONDS", 0.05)
    monkeypatch.setattr("app.main.STREAM_SECONDS", 0.05)
    settings = api_settings(tmp_path, colour_bundle, api_keys="required")
    async with open_api(settings) as api:
        yield api


def guarded(app: FastAPI) -> list[tuple[str, str, Scope]]:
    return [(m, p, access) for m, p, access in routes_of(app) if isinstance(access, Scope)]


def address(path: str) -> str:
    return re.sub(r"\{\w+\}", HASH, path)


async def test_public_routes_are_listed_here(api: Api) -> None:
    routes = routes_of(api.app)
    assert {(m, path) for m, path, access in routes if access == PUBLIC} == OPEN
    assert all(access is not None for _, _, access in routes)


def test_route_without_declared_access_prevents_the_start() -> None:
    app = FastAPI(openapi_url=None)

    @app.get("/said")
    @public
    async def said() -> str:
        return ""

    check_every_route(app.router.routes)

    @app.get("/unsaid")
    async def unsaid() -> str:
        return ""

    with pytest.raises(RuntimeError, match="GET /unsaid"):
        check_every_route(app.router.routes)


async def test_every_other_route_requires_a_key(api: Api) -> None:
    routes = guarded(api.app)
    assert len(routes) >= 14
    wrong: dict[str, dict[str, Any]] = {
        "": {},
        "unknown scheme": {"Authorization": "Basic Z2xwOng="},
        "empty": {"Authorization": "Bearer "},
        "malformed": {"Authorization": "Bearer glp_short"},
        "not ours": {"X-API-Key": f"glp_{'a' * 63}"},
        "not text": {"X-API-Key": "gl\xffp".encode("latin-1")},
    }
    for method, path, _ in routes:
        for headers in wrong.values():
            answer = await api.client.request(
                method, address(path), headers=headers, content=IMAGE if method == "POST" else None
            )
            assert_problem(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "ratelimit" not in answer.headers
    assert api.traces() == NOTHING


async def test_key_in_the_url_is_ignored(api: Api) -> None:
    issued = await api.issue("public")
    for name in ("key", "api_key", "access_token", "x-api-key"):
        path = f"/api/v1/images/{HASH}?{name}={issued.text}"
        assert_problem(await api.client.get(path), 401, "unauthenticated")


async def test_every_route_requires_its_scope(api: Api) -> None:
    """A key with every other scope is refused, and one with only this scope is not."""
    for method, path, scope in guarded(api.app):
        without = await api.issue("public", *(ALL_SCOPES - {scope}))
        just = await api.issue("public", scope)
        content = IMAGE if method == "POST" else None
        answer = await api.client.request(
            method, address(path), headers=bearer(without), content=content
        )
        problem = assert_problem(answer, 403, "forbidden")
        if problem:
            assert problem["scope"] == scope
        answer = await api.client.request(
            method, address(path), headers=bearer(just), content=content
        )
        assert answer.status_code not in (401, 403), (method, path)


async def test_key_is_read_from_either_header(api: Api) -> None:
    issued = await api.issue("public")
    for headers in (
        {"Authorization": f"Bearer {issued.text}"},
        {"Authorization": f"bearer  {issued.text} "},
        {"X-API-Key": issued.text},
        # Behind Cloud Run's IAM check, `Authorization` contains an identity token.
        {"Authorization": "Bearer eyJhbGciOi.e30.x", "X-API-Key": issued.text},
    ):
        answer = await api.client.get(f"/api/v1/images/{HASH}", headers=headers)
        assert answer.status_code == 404, headers
    wrong = {"Authorization": f"Bearer {issued.text}", "X-API-Key": "glp_no"}
    answer = await api.client.get(f"/api/v1/images/{HASH}", headers=wrong)
    assert answer.status_code == 401


async def test_key_with_any_changed_character_is_refused(api: Api) -> None:
    text = (await api.issue("public")).text
    for place, character in enumerate(text):
        other = text[:place] + ("a" if character != "a" else "b") + text[place + 1 :]
        answer = await api.client.get("/api/v1/usage", headers={"X-API-Key": other})
        assert answer.status_code == 401, place


async def test_invented_key_causes_no_lookup(tmp_path: Path, colour_bundle: Path) -> None:
    """The tag of a key is checked without the store, even during an outage of the store."""
    settings = api_settings(tmp_path, colour_bundle, api_keys="required")
    async with open_api(settings) as api:
        issued = await api.issue("public")
        await api.authenticator.access.keys._database.close()  # type: ignore[attr-defined]
        forged = f"glp_{'x' * 63}"
        answer = await api.client.get("/api/v1/usage", headers={"X-API-Key": forged})
        assert_problem(answer, 401, "unauthenticated")
        answer = await api.client.get("/api/v1/usage", headers=bearer(issued))
        assert_problem(answer, 503, "unavailable")
        assert (await api.client.get("/health")).status_code == 204
        ready = await api.client.get("/ready")
        assert_problem(ready, 503, "not_ready")
        assert ready.json()["checks"]["keys"] != "ok"


async def test_revocation_takes_effect_at_once_here_and_later_in_other_processes(
    tmp_path: Path, colour_bundle: Path
) -> None:
    settings = api_settings(tmp_path, colour_bundle, api_keys="required", rate_limit="off")
    async with open_api(settings) as api, open_api(settings) as other:
        other.authenticator.trusted_seconds = 0.2
        admin, victim = await api.issue("acme"), await api.issue("acme", Scope.READ)
        for process in (api, other):
            answer = await process.client.get(PATH, headers=bearer(victim))
            assert answer.status_code == 404
        path = f"/api/v1/keys/{victim.key.id}"
        answer = await api.client.delete(path, headers=bearer(admin))
        assert answer.status_code == 204
        answer = await api.client.get(PATH, headers=bearer(victim))
        assert_problem(answer, 401, "unauthenticated")
        while (await other.client.get(PATH, headers=bearer(victim))).status_code == 404:
            pass  # bounded by the test's timeout
        assert (await api.client.delete(path, headers=bearer(admin))).status_code == 204


async def test_expired_key_is_refused(tmp_path: Path, colour_bundle: Path) -> None:
    clock = MovableClock()
    settings = api_settings(tmp_path, colour_bundle, api_keys="required", rate_limit="off")
    async with open_api(settings, clock) as api:
        api.authenticator.trusted_seconds = 0.05
        issued = await api.issue("acme", expires_at=clock() + timedelta(hours=1))
        clock.move(3599)
        answer = await api.client.get(PATH, headers=bearer(issued))
        assert answer.status_code == 404
        clock.move(1)
        while (await api.client.get(PATH, headers=bearer(issued))).status_code == 404:
            pass
        answer = await api.client.get(PATH, headers=bearer(issued))
        assert_problem(answer, 401, "unauthenticated")


async def test_service_without_keys_has_no_key_routes_and_no_store(
    tmp_path: Path, colour_bundle: Path
) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        assert api.services.authenticator is None
        answer = await api.client.post("/api/v1/images", content=IMAGE)
        assert answer.status_code == 202
        assert "ratelimit" not in answer.headers
        for method, path in (("GET", "/api/v1/keys"), ("POST", "/api/v1/keys")):
            problem = assert_problem(await api.client.request(method, path), 409, "conflict")
            assert "API_KEYS=off" in problem["detail"]
        assert_problem(await api.client.get("/api/v1/usage"), 409, "conflict")
        assert not (api.settings.data_dir / "keys.db").exists()


async def test_schema_documents_the_scope_of_each_route(api: Api) -> None:
    schema = (await api.client.get("/openapi.json")).json()
    assert schema["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for method, path, access in routes_of(api.app):
        operation = schema["paths"].get(path, {}).get(method.lower())
        if operation is None:
            continue
        if access == PUBLIC:
            assert operation.get("security", []) == []
        else:
            assert operation["security"] == [{"bearer": []}, {"header": []}]
            asked = f"If keys are required: one with the scope `{access}`."
            assert asked in operation["description"]
            assert {"401", "403", "429"} <= set(operation["responses"])


def test_schema_documents_that_keys_are_optional(tmp_path: Path, colour_bundle: Path) -> None:
    schema = create_app(api_settings(tmp_path, colour_bundle)).openapi()
    assert {} in schema["paths"]["/what/fast"]["post"]["security"]


def test_scopes_are_parsed_from_names() -> None:
    assert scopes_of(["read", " classify "]) == {Scope.READ, Scope.CLASSIFY}
    assert scopes_of(["all"]) == ALL_SCOPES
    for wrong in (["write"], [], [""], ["all", "none"]):
        with pytest.raises(ValueError, match="scope"):
            scopes_of(wrong)


# --- Administration -------------------------------------------------------------------------------


async def test_key_is_created_listed_rotated_and_revoked(api: Api) -> None:
    admin = bearer(await api.issue("acme"))
    body = {
        "name": "camera 3",
        "scopes": ["classify"],
        "expires": "90d",
        "rate_limit": "5/second",
        "daily_quota": 1000,
    }
    made = await api.client.post("/api/v1/keys", json=body, headers=admin)
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    document = made.json()
    first = document.pop("key")
    assert first.startswith(document["prefix"].removesuffix("…"))
    assert (document["name"], document["scopes"], document["tenant"]) == (
        "camera 3",
        ["classify"],
        "acme",
    )
    assert (document["rate_limit"], document["daily_quota"]) == ("5/second", 1000)

    listed = await api.client.get("/api/v1/keys", headers=admin)
    assert listed.json()["keys"][1] == document
    assert first not in listed.text

    async def upload(key: str) -> int:
        answer = await api.client.post("/api/v1/images", content=IMAGE, headers={"X-API-Key": key})
        return answer.status_code

    assert await upload(first) == 202
    path = f"/api/v1/keys/{document['id']}"
    rotated = await api.client.post(f"{path}/rotate", headers=admin)
    second = rotated.json()["key"]
    assert rotated.json()["id"] == document["id"]
    assert second != first
    assert [await upload(first), await upload(second)] == [202, 202]
    rotated = await api.client.post(f"{path}/rotate", json={"overlap_seconds": 0}, headers=admin)
    third = rotated.json()["key"]
    assert [await upload(key) for key in (first, second, third)] == [401, 401, 202]
    assert (await api.client.delete(path, headers=admin)).status_code == 204
    assert await upload(third) == 401
    answer = await api.client.post(f"{path}/rotate", headers=admin)
    assert_problem(answer, 409, "conflict")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "x" * 101},
        {"name": "line\nbreak"},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["root"]},
        {"name": "x", "expires": "soon"},
        {"name": "x", "expires": "2020-01-01"},
        {"name": "x", "expires": "9999-12-31T23:59-12:00"},
        {"name": "x", "rate_limit": "fast"},
        {"name": "x", "daily_quota": -1},
        {"name": "x", "daily_quota": 2**63},
        {"name": "x", "id": "0" * 12},
        [],
        "x",
    ],
)
async def test_invalid_key_is_refused(api: Api, body: object) -> None:
    admin = bearer(await api.issue("acme"))
    answer = await api.client.post("/api/v1/keys", json=body, headers=admin)
    assert_problem(answer, 422, "invalid_request")
    assert len((await api.client.get("/api/v1/keys", headers=admin)).json()["keys"]) == 1


@pytest.mark.parametrize("overlap", [-1, 30 * 86_400 + 1, "soon", None])
async def test_rotation_with_an_invalid_overlap_is_refused(api: Api, overlap: object) -> None:
    issued = await api.issue("acme")
    path = f"/api/v1/keys/{issued.key.id}/rotate"
    body = {"overlap_seconds": overlap}
    problem = assert_problem(
        await api.client.post(path, json=body, headers=bearer(issued)), 422, "invalid_request"
    )
    assert problem["field"] == "overlap_seconds"
    assert (await api.client.get("/api/v1/keys", headers=bearer(issued))).json()["keys"][0][
        "rotated_at"
    ] is None


async def test_rotation_with_the_longest_overlap_is_accepted(api: Api) -> None:
    issued = await api.issue("acme")
    path = f"/api/v1/keys/{issued.key.id}/rotate"
    body = {"overlap_seconds": 30 * 86_400}
    answer = await api.client.post(path, json=body, headers=bearer(issued))
    assert answer.status_code == 200


async def test_oversized_and_malformed_bodies_are_refused(api: Api) -> None:
    admin = {**bearer(await api.issue("acme")), "Content-Type": "application/json"}
    answer = await api.client.post("/api/v1/keys", content=b" " * 20_000, headers=admin)
    assert_problem(answer, 413, "body_too_large")
    answer = await api.client.post("/api/v1/keys", content=b"{", headers=admin)
    assert_problem(answer, 422, "invalid_request")


async def test_time_of_last_use_is_stored(api: Api) -> None:
    issued = await api.issue("acme")
    before = utc_now()
    await api.client.get("/api/v1/usage", headers=bearer(issued))
    key = await api.authenticator.access.keys.get(issued.key.id)
    assert key is not None and key.last_used_at is not None
    assert before <= key.last_used_at <= utc_now()
