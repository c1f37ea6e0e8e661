"""Rate limits, quotas and usage of keys in the API."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.auth import authenticator
from app.keys.service import Issued
from core.domain.principals import Scope
from core.domain.rate_limits import DAY, Limit, Rate, TenantLimits
from core.errors import Unavailable
from tests.support.api import Api, api_settings, bearer, open_api
from tests.support.clock import MovableClock
from tests.support.problems import assert_problem

NOW = datetime(2026, 11, 21, 9, 30, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the timeouts of the store: on a busy machine it may be slow."""
    monkeypatch.setattr(authenticator, "SHARE_SECONDS", 60.0)
    monkeypatch.setattr(authenticator, "CLOSE_SECONDS", 60.0)


@pytest.fixture
def clock() -> MovableClock:
    clock = MovableClock()
    clock.now = NOW
    return clock


@asynccontextmanager
async def limited(
    folder: Path, bundle: Path, clock: MovableClock, processes: int = 1, **settings: object
) -> AsyncIterator[list[Api]]:
    """Open several applications on one data folder, as processes of the API do."""
    chosen = api_settings(folder, bundle, api_keys="required", **settings)
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_api(chosen, clock)) for _ in range(processes)]


async def ask(api: Api, issued: Issued) -> httpx.Response:
    return await api.client.get(f"/api/v1/images/{'0' * 64}", headers=bearer(issued))


async def test_rate_is_enforced_and_reported_until_the_end_of_its_window(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock
) -> None:
    async with limited(tmp_path, colour_bundle, clock, rate_limit="20/minute") as (api,):
        issued = await api.issue("acme")
        for number in range(20):
            answer = await ask(api, issued)
            assert answer.status_code == 404
            assert answer.headers["ratelimit-policy"] == '"rate";q=20;w=60'
            assert answer.headers["ratelimit"] == f'"rate";r={19 - number};t=48'
        clock.move(8.5)
        for _ in range(3):
            answer = await ask(api, issued)
            problem = assert_problem(answer, 429, "rate_limited")
            assert answer.headers["retry-after"] == "40"
            assert answer.headers["ratelimit"] == '"rate";r=0;t=40'
            assert problem["violated-policies"] == ["rate"]
            assert "The tenant has used its 20 requests in 60 seconds" in problem["detail"]
        clock.move(float(answer.headers["retry-after"]))
        answer = await ask(api, issued)
        assert answer.status_code == 404
        assert answer.headers["ratelimit"] == '"rate";r=19;t=60'


async def test_daily_quota_is_enforced_until_midnight(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock
) -> None:
    async with limited(tmp_path, colour_bundle, clock, daily_quota=3) as (api,):
        issued = await api.issue("acme")
        statuses = []
        for _ in range(4):
            clock.move(61)
            answer = await ask(api, issued)
            statuses.append(answer.status_code)
        assert statuses == [404, 404, 404, 429]
        assert answer.headers["ratelimit-policy"] == '"rate";q=600;w=60, "day";q=3;w=86400'
        assert answer.json()["violated-policies"] == ["day"]
        assert answer.json()["resets_at"] == "2026-11-22T00:00:00.000Z"
        assert "resets at 2026-11-22T00:00:00.000Z" in answer.json()["detail"]
        clock.move(float(answer.headers["retry-after"]))
        assert clock().date() == datetime(2026, 11, 22, tzinfo=UTC).date()
        assert (await ask(api, issued)).status_code == 404


async def test_keys_of_a_tenant_share_its_limits(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock
) -> None:
    async with limited(tmp_path, colour_bundle, clock, rate_limit="4/minute") as (api,):
        first, second = await api.issue("acme"), await api.issue("acme")
        other = await api.issue("other")
        answers = [await ask(api, issued) for issued in (first, second, first, second, first)]
        assert [answer.status_code for answer in answers] == [404] * 4 + [429]
        assert (await ask(api, second)).status_code == 429
        assert (await ask(api, other)).status_code == 404


async def test_key_has_its_own_limits_beside_those_of_its_tenant(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock
) -> None:
    async with limited(tmp_path, colour_bundle, clock, rate_limit="8/minute") as (api,):
        own, other = await api.issue("acme", rate=Rate(5, 60)), await api.issue("acme")
        for _ in range(5):
            answer = await ask(api, own)
            assert answer.status_code == 404
        assert answer.headers["ratelimit-policy"] == '"key-rate";q=5;w=60, "rate";q=8;w=60'
        assert answer.headers["ratelimit"].startswith('"key-rate";r=0;')
        problem = assert_problem(await ask(api, own), 429, "rate_limited")
        assert problem["violated-policies"] == ["key-rate"]
        assert problem["detail"].startswith("The key has used its 5 requests")
        assert [(await ask(api, other)).status_code for _ in range(4)] == [404, 404, 404, 429]


async def test_limits_of_a_tenant_override_those_of_the_service(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock
) -> None:
    settings: dict[str, Any] = {"rate_limit": "2/minute", "daily_quota": 2}
    async with limited(tmp_path, colour_bundle, clock, **settings) as (api,):
        await api.authenticator.access.keys.set_limits("acme", TenantLimits(Rate(5, 60), 0))
        issued = await api.issue("acme")
        answers = [await ask(api, issued) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [404] * 5 + [429]
        assert answers[0].headers["ratelimit-policy"] == '"rate";q=5;w=60'


async def look_up(api: Api, issued: Issued, images: int) -> httpx.Response:
    hashes = [f"{number:064x}" for number in range(images)]
    return await api.client.post(
        "/api/v1/images/lookup", json={"image_hashes": hashes}, headers=bearer(issued)
    )


async def test_images_of_a_request_count_in_the_rate_and_later_windows(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock
) -> None:
    async with limited(tmp_path, colour_bundle, clock, rate_limit="20/minute") as (api,):
        issued = await api.issue("acme")
        answer = await look_up(api, issued, 12)
        assert answer.status_code == 200
        assert answer.headers["ratelimit"] == '"rate";r=8;t=48'
        answer = await look_up(api, issued, 30)
        assert answer.status_code == 200
        assert answer.headers["ratelimit"] == '"rate";r=0;t=108'
        answer = await ask(api, issued)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "108")
        clock.move(60)
        assert (await ask(api, issued)).status_code == 429
        clock.move(60)
        answer = await ask(api, issued)
        assert answer.headers["ratelimit"] == '"rate";r=17;t=48'


async def test_request_with_more_images_than_the_quota_has_left_is_refused(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock
) -> None:
    settings: dict[str, Any] = {"rate_limit": "off", "daily_quota": 10}
    async with limited(tmp_path, colour_bundle, clock, **settings) as (api,):
        issued = await api.issue("acme")
        problem = assert_problem(await look_up(api, issued, 11), 429, "rate_limited")
        assert problem["violated-policies"] == ["day"]
        assert problem["resets_at"] == "2026-11-22T00:00:00.000Z"
        answer = await look_up(api, issued, 9)
        assert answer.status_code == 200
        assert answer.headers["ratelimit"].startswith('"day";r=0;')
        assert (await ask(api, issued)).status_code == 429


async def test_repeated_creation_of_a_job_counts_its_images_once(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock
) -> None:
    settings: dict[str, Any] = {"rate_limit": "off", "daily_quota": 20}
    async with limited(tmp_path, colour_bundle, clock, **settings) as (api,):
        issued = await api.issue("acme")
        hashes = [f"{number:064x}" for number in range(10)]
        for left in (10, 9):
            answer = await api.client.post(
                "/api/v1/jobs/batch-predict",
                json={"image_hashes": hashes},
                headers={**bearer(issued), "Idempotency-Key": "a"},
            )
            assert answer.status_code == 202
            assert answer.headers["ratelimit"].startswith(f'"day";r={left};')


async def test_address_gets_a_limited_number_of_emails(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        authenticator, "EMAIL_LIMIT", Limit("email", 2, DAY, strict=True, divided=False)
    )
    mail: dict[str, Any] = {
        "smtp_url": "smtp://mail.example.org",
        "email_from": "glimpse@example.org",
    }
    async with limited(tmp_path, colour_bundle, clock, rate_limit="off", **mail) as (api,):
        first, second = await api.issue("acme"), await api.issue("other")

        async def create(issued: Issued, address: str) -> httpx.Response:
            return await api.client.post(
                "/api/v1/jobs/batch-predict",
                params={"notify_email": address},
                json={"image_hashes": ["0" * 64]},
                headers=bearer(issued),
            )

        for issued in (first, second):
            assert (await create(issued, "a@example.org")).status_code == 202
        problem = assert_problem(await create(first, "A@example.org"), 429, "rate_limited")
        assert problem["field"] == "notify_email"
        assert (await create(first, "b@example.org")).status_code == 202


async def test_response_without_limits_has_no_rate_limit_headers(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock
) -> None:
    async with limited(tmp_path, colour_bundle, clock, rate_limit="off") as (api,):
        answer = await ask(api, await api.issue("acme"))
        assert answer.status_code == 404
        assert "ratelimit" not in answer.headers


@pytest.mark.parametrize("quota", [1, 7, 20, 100])
async def test_processes_share_a_limit(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock, quota: int
) -> None:
    """Three processes together let through exactly as many requests as one."""
    settings = {"rate_limit": f"{quota}/minute"}
    async with limited(tmp_path, colour_bundle, clock, processes=3, **settings) as processes:
        issued = await processes[0].issue("acme")
        answers = await asyncio.gather(
            *(ask(processes[n % 3], issued) for n in range(3 * quota + 10))
        )
        let_through = sum(answer.status_code == 404 for answer in answers)
        assert let_through == quota
        assert {answer.status_code for answer in answers} <= {404, 429}


async def test_used_quota_survives_a_restart(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock
) -> None:
    settings: dict[str, Any] = {"rate_limit": "off", "daily_quota": 4}
    async with limited(tmp_path, colour_bundle, clock, **settings) as (api,):
        issued = await api.issue("acme")
        assert [(await ask(api, issued)).status_code for _ in range(3)] == [404] * 3
    async with limited(tmp_path, colour_bundle, clock, **settings) as (api,):
        assert [(await ask(api, issued)).status_code for _ in range(2)] == [404, 429]


async def test_limit_is_enforced_by_the_process_alone_if_the_store_fails(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock
) -> None:
    """The store fails between two shares, which is no reason to refuse a request."""
    async with limited(tmp_path, colour_bundle, clock, rate_limit="20/minute") as (api,):
        issued = await api.issue("acme")
        assert (await ask(api, issued)).status_code == 404
        await api.authenticator.access.allowances._database.close()  # type: ignore[attr-defined]
        statuses = [(await ask(api, issued)).status_code for _ in range(25)]
        assert statuses == [404] * 19 + [429] * 6


# --- Usage ----------------------------------------------------------------------------------------


async def usage(api: Api, issued: Issued, query: str = "") -> list[dict[str, object]]:
    answer = await api.client.get(f"/api/v1/usage{query}", headers=bearer(issued))
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, object]] = answer.json()["usage"]
    return rows


async def test_usage_counts_requests_images_bytes_and_refusals_per_day(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock
) -> None:
    async with limited(tmp_path, colour_bundle, clock, rate_limit="3/minute") as (api,):
        issued = await api.issue("acme")
        image = b"\xff\xd8\xff not much of an image"
        for _ in range(2):
            await api.client.post("/api/v1/images", content=image, headers=bearer(issued))
        for _ in range(3):
            await ask(api, issued)
        clock.move(DAY)
        rows = await usage(api, issued)
        assert rows == [
            {
                "day": "2026-11-21",
                "key_id": issued.key.id,
                "requests": 3,
                "images": 2,
                "bytes": 2 * len(image),
                "refused": 2,
            },
            {
                "day": "2026-11-22",
                "key_id": issued.key.id,
                "requests": 1,
                "images": 0,
                "bytes": 0,
                "refused": 0,
            },
        ]
        assert [row["day"] for row in await usage(api, issued, "?days=1")] == ["2026-11-22"]


async def test_administrator_sees_usage_of_the_tenant_and_others_their_own(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock
) -> None:
    async with limited(tmp_path, colour_bundle, clock) as (api,):
        admin, reader = await api.issue("acme"), await api.issue("acme", Scope.READ)
        await ask(api, reader)
        await ask(api, admin)
        assert {row["key_id"] for row in await usage(api, admin)} == {admin.key.id}
        both = {row["key_id"] for row in await usage(api, admin, "?keys=all")}
        assert both == {admin.key.id, reader.key.id}
        assert {row["key_id"] for row in await usage(api, reader)} == {reader.key.id}
        answer = await api.client.get("/api/v1/usage?keys=all", headers=bearer(reader))
        assert answer.status_code == 403
        for query in ("?days=0", "?days=367", "?days=x", "?days=-1", "?keys=theirs"):
            answer = await api.client.get(f"/api/v1/usage{query}", headers=bearer(reader))
            assert answer.status_code == 422, query


async def test_counts_are_written_at_shutdown(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock
) -> None:
    async with limited(tmp_path, colour_bundle, clock) as (api,):
        issued = await api.issue("acme")
        for _ in range(5):
            await ask(api, issued)
    async with limited(tmp_path, colour_bundle, clock) as (api,):
        assert [row["requests"] for row in await usage(api, issued)] == [6]


async def test_counts_that_cannot_be_written_are_kept(
    tmp_path: Path, colour_bundle: Path, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with limited(tmp_path, colour_bundle, clock, rate_limit="off") as (api,):
        issued = await api.issue("acme")
        await ask(api, issued)
        with closing(sqlite3.connect(api.settings.data_dir / "keys.db")) as other:
            other.execute("BEGIN IMMEDIATE")  # longer than the timeout of the store
            with monkeypatch.context() as patch, pytest.raises(Unavailable):
                patch.setattr("core.backends.embedded.database.BUSY_SECONDS", 0.1)
                await api.authenticator.write_usage()
            assert (await ask(api, issued)).status_code == 404
        assert [row["requests"] for row in await usage(api, issued)] == [3]
