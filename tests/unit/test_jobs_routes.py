"""The routes of jobs: creation, lists, results and cancellation."""

import asyncio
import csv
import dataclasses
import io
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect

from app.batches.form import FIELD
from core.backends import Backend, open_backend
from core.clock import Clock, utc_now
from core.domain import jobs
from core.domain.jobs import Counts, ItemState, Job, JobItem, JobKey, JobStatus
from core.domain.policy import DeliveryPolicy
from core.domain.principals import Scope
from core.domain.priority import Priority
from core.domain.records import PUBLIC_TENANT, Annotation, RecordError, Status, complete, fail
from core.domain.transitions import Transition
from core.domain.webhooks import parse_secret
from core.errors import Unavailable
from core.settings import Settings
from tests.support.api import LEASE, NOTHING, Api, api_settings, bearer, eventually, open_api
from tests.support.batches import BOUNDARY, FORM, archive, cut, form, manifest, part
from tests.support.clock import MovableClock, turns
from tests.support.metrics import samples, series
from tests.support.pictures import picture, png_header, sha256
from tests.support.problems import assert_problem
from tests.support.records import claimed
from worker.tasks.reconcile import reconcile

JOBS = "/api/v1/jobs"
CREATE = JOBS + "/batch-predict"
RED, BLUE, GREEN = (
    picture(n, colour, (16, 16))
    for n, colour in enumerate([(200, 30, 30), (30, 30, 200), (30, 200, 30)])
)
UNKNOWN = "0" * 64
ZIP = {"Content-Type": "application/zip"}


@pytest.fixture
async def keyed(tmp_path: Path, colour_bundle: Path) -> AsyncIterator[Api]:
    async with open_api(api_settings(tmp_path, colour_bundle, api_keys="required")) as opened:
        yield opened


def files(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [(FIELD, (f"{number}.jpg", data)) for number, data in enumerate(images)]


async def create(api: Api, *images: bytes, **options: Any) -> str:
    """Create a job of these images, and return its id."""
    response = await api.client.post(CREATE, files=files(*images), **options)
    assert response.status_code == 202, response.text
    job_id: str = response.json()["job_id"]
    return job_id


async def by_hash(api: Api, *entries: object, **options: Any) -> httpx.Response:
    document = options.pop("document", {})
    return await api.client.post(CREATE, json={"image_hashes": entries, **document}, **options)


async def job(api: Api, job_id: str, tenant: str = PUBLIC_TENANT) -> Job:
    found = await api.services.backend.jobs.get(JobKey(tenant, job_id))
    assert found is not None
    return found


async def items(api: Api, job_id: str, tenant: str = PUBLIC_TENANT) -> list[JobItem]:
    return list(await api.services.backend.jobs.items(JobKey(tenant, job_id), 1000))


async def results(api: Api, job_id: str, **headers: str) -> list[dict[str, Any]]:
    response = await api.client.get(f"{JOBS}/{job_id}/results?limit=1000", headers=headers)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["results"]
    return found


async def run(api: Api, job_id: str, tenant: str = PUBLIC_TENANT) -> Job:
    """Run the job as the worker does. Every open item succeeds."""
    store, key = api.services.backend.jobs, JobKey(tenant, job_id)
    await store.change(key, jobs.start())
    for item in await items(api, job_id, tenant):
        if item.state is ItemState.OPEN:
            record = await api.records.get(api.key(item.image_hash, tenant))
            assert record is not None
            if not record.status.terminal:
                await api.succeed(item.image_hash, tenant)
            await store.complete_item(key, item.position, None, timedelta(0))
    await store.refresh_counts(key)
    return await job(api, job_id, tenant)


def codes(found: list[JobItem]) -> list[str]:
    return [item.error.code if item.error else "" for item in found]


def nothing_created(api: Api) -> bool:
    """Whether there is no record, no message and no job. Blobs may be stored."""
    traces = api.traces()
    return (traces.records, traces.messages, api.rows("jobs")) == (0, 0, 0)


# --- Creation. ------------------------------------------------------------------------------------


async def test_form_creates_a_job(api: Api) -> None:
    response = await api.client.post(CREATE, files=files(RED, BLUE))
    assert response.status_code == 202
    body = response.json()
    path = f"{JOBS}/{body['job_id']}"
    assert body == {
        "job_id": body["job_id"],
        "status": "pending",
        "skipped": 0,
        "message": "2 images accepted. Poll poll_url or stream stream_url.",
        "poll_url": path,
        "stream_url": path + "/stream",
    }
    assert response.headers["location"] == path
    assert response.headers["cache-control"] == "no-store"
    assert api.messages() == [
        {"kind": "run_job", "tenant": "public", "job": body["job_id"], **_trace(api)}
    ]
    for position, (item, image) in enumerate(
        zip(await items(api, body["job_id"]), (RED, BLUE), strict=True)
    ):
        assert item == JobItem(position, sha256(image), f"{position}.jpg")
        record = await api.record(sha256(image))
        assert (record.status, record.job) == (Status.PENDING, body["job_id"])
        assert record.priority is Priority.NORMAL
        assert await api.services.backend.blobs.get(f"public/{sha256(image)}") == image
    made = await job(api, body["job_id"])
    assert (made.sealed, made.status, made.counts.total) == (True, JobStatus.PENDING, 2)
    assert (made.owner, made.type, made.model) == ("", "batch-predict", api.services.model)


def _trace(api: Api) -> dict[str, str]:
    return {key: value for key, value in api.messages()[0].items() if key == "traceparent"}


async def test_zip_creates_a_job(api: Api) -> None:
    body = archive({"photos/a.jpg": RED, "photos/b.png": BLUE, "__MACOSX/._a.jpg": b"x"})
    response = await api.client.post(CREATE, content=body, headers=ZIP)
    assert response.status_code == 202
    assert response.json()["skipped"] == 1
    assert response.json()["message"].startswith("2 images accepted, 1 other file skipped. ")
    found = await items(api, response.json()["job_id"])
    assert [(item.image_hash, item.name) for item in found] == [
        (sha256(RED), "photos/a.jpg"),
        (sha256(BLUE), "photos/b.png"),
    ]
    assert api.traces() == dataclasses.replace(NOTHING, records=2, blobs=2, messages=1)


async def test_hashes_of_stored_images_create_a_job(api: Api) -> None:
    await api.client.post("/api/v1/images", content=RED)
    await api.services.backend.blobs.put(f"public/{sha256(BLUE)}", BLUE, "image/jpeg")
    entries = [
        {"image_hash": sha256(RED), "metadata": {"shelf": "ä"}},
        UNKNOWN,
        sha256(BLUE),
        {"image_hash": UNKNOWN, "metadata": {"again": True}},
    ]
    response = await by_hash(api, *entries)
    assert response.status_code == 202
    found = await items(api, response.json()["job_id"])
    assert codes(found) == ["", "not_uploaded", "", "not_uploaded"]
    assert [item.metadata for item in found] == [{"shelf": "ä"}, {}, {}, {"again": True}]
    assert found[1].error is not None and found[1].error.retryable
    # A client has uploaded the red image before, so it does not belong to the job.
    assert (await api.record(sha256(RED))).job == ""
    assert (await api.record(sha256(BLUE))).job == response.json()["job_id"]
    assert await api.records.get(api.key(UNKNOWN)) is None


async def test_manifest_lists_images_of_the_form(api: Api) -> None:
    """Images of the form that the manifest does not list follow the listed ones."""
    await api.services.backend.blobs.put(f"public/{sha256(BLUE)}", BLUE, "image/jpeg")
    listed = {
        "image_hashes": [sha256(BLUE), {"image_hash": sha256(RED), "metadata": {"n": 2}}],
        "priority": "low",
    }
    for parts in (
        [manifest(json.dumps(listed).encode()), part(GREEN, filename=b"g.jpg"), part(RED)],
        [part(GREEN, filename=b"g.jpg"), part(RED), manifest(json.dumps(listed).encode())],
    ):
        response = await api.client.post(
            CREATE, content=form(*parts), headers={"Content-Type": FORM}
        )
        assert response.status_code == 202
        found = await items(api, response.json()["job_id"])
        assert [(item.image_hash, item.name, dict(item.metadata)) for item in found] == [
            (sha256(BLUE), "", {}),
            (sha256(RED), "a.jpg", {"n": 2}),
            (sha256(GREEN), "g.jpg", {}),
        ]
        assert (await job(api, response.json()["job_id"])).priority is Priority.LOW


async def test_equal_images_are_separate_items_of_one_record(api: Api) -> None:
    job_id = await create(api, RED, BLUE, RED, RED, BLUE)
    found = await items(api, job_id)
    hashes = [sha256(image) for image in (RED, BLUE, RED, RED, BLUE)]
    assert [item.image_hash for item in found] == hashes
    assert api.traces().blobs == api.traces().records == 2
    assert (await run(api, job_id)).counts == jobs.Counts(5, 5, 0)


async def test_invalid_image_fails_its_item_and_not_the_job(
    tmp_path: Path, colour_bundle: Path
) -> None:
    settings = api_settings(tmp_path, colour_bundle, max_image_bytes=5000, max_image_pixels=10_000)
    async with open_api(settings) as api:
        bad = [b"", b"no image", bytes(5001), png_header(3000, 3000), RED[:20], RED]
        for body, headers in (
            (form(*(part(each) for each in bad)), {"Content-Type": FORM}),
            (archive([(f"{n}.jpg", each) for n, each in enumerate(bad)]), ZIP),
        ):
            response = await api.client.post(CREATE, content=body, headers=headers)
            assert response.status_code == 202
            found = await items(api, response.json()["job_id"])
            assert codes(found) == [
                *("invalid_image", "unsupported_image", "image_too_large"),
                *("invalid_image", "invalid_image", ""),
            ]
            assert [item.state for item in found[:5]] == [ItemState.FAILED] * 5
            assert not any(item.error.retryable for item in found[:5] if item.error)
            assert found[2].image_hash == "" and found[1].image_hash == sha256(b"no image")
            shown = await results(api, response.json()["job_id"])
            assert shown[2]["image_hash"] is None
            assert shown[2]["error"]["detail"] == "The image is larger than 5000 bytes."
        assert api.traces().records == api.traces().blobs == 1
        made = await run(api, response.json()["job_id"])
        assert (made.status, made.counts) == (JobStatus.COMPLETED, jobs.Counts(6, 1, 5))


async def test_known_images_are_not_stored_again(api: Api) -> None:
    """A job of known images stores and publishes nothing but its own message."""
    first = await create(api, RED, BLUE)
    await run(api, first)
    before = api.traces()
    again = await by_hash(api, sha256(RED), sha256(BLUE))
    assert again.status_code == 202
    assert codes(await items(api, again.json()["job_id"])) == ["", ""]
    assert api.traces() == dataclasses.replace(before, messages=before.messages + 1)
    assert (await api.record(sha256(RED))).job == first


async def test_image_with_a_retryable_error_is_retried(api: Api) -> None:
    first = await create(api, RED, BLUE)
    await api.fail(sha256(RED), retryable=True)
    await api.fail(sha256(BLUE), retryable=False)
    response = await by_hash(api, sha256(RED), sha256(BLUE))
    red, blue = await api.record(sha256(RED)), await api.record(sha256(BLUE))
    assert (red.status, red.job) == (Status.PENDING, response.json()["job_id"])
    assert (blue.status, blue.job) == (Status.ERROR, first)


async def test_image_of_two_jobs_belongs_to_neither(api: Api) -> None:
    await create(api, RED)
    await create(api, RED, params={"priority": "high"})
    record = await api.record(sha256(RED))
    assert (record.job, record.priority) == ("", Priority.HIGH)


async def test_image_of_two_delayed_jobs_does_not_start_early(
    tmp_path: Path, colour_bundle: Path
) -> None:
    clock = MovableClock()
    async with open_api(api_settings(tmp_path, colour_bundle), clock) as api:
        tomorrow = {"params": {"not_before": "2026-11-22T09:30:00Z"}}
        first = await create(api, RED, **tomorrow)
        await create(api, RED, **tomorrow)
        assert (await api.record(sha256(RED))).job == first
        clock.move(1000)
        backend = api.services.backend
        counts = await reconcile(backend, DeliveryPolicy(), clock())
        assert {outcome: count for outcome, count in counts.items() if count} == {"waiting": 1}
        assert api.messages() == []


async def test_job_with_a_start_time_and_a_deadline(tmp_path: Path, colour_bundle: Path) -> None:
    clock = MovableClock()
    mail = {"smtp_url": "smtp://mail.example.org", "email_from": "glimpse@example.org"}
    async with open_api(api_settings(tmp_path, colour_bundle, **mail), clock) as api:
        response = await api.client.post(
            CREATE,
            files=files(RED, b"bad"),
            params={"not_before": "2026-11-21T10:30:00Z", "notify_email": "ada@example.org"},
            headers={"Cancel-After": "2h"},
        )
        made = await job(api, response.json()["job_id"])
        assert made.not_before is not None and made.not_before == made.wake_at
        assert made.deadline == clock.now + timedelta(hours=2)
        assert made.notify_email == "ada@example.org"
        assert made.counts.failed == 1, "the worker counts only after the start"
        assert api.messages() == []
        assert await api.services.backend.jobs.due(clock.now, 10) == []
        shown = (await api.client.get(response.headers["location"])).json()
        assert shown["not_before"] == "2026-11-21T10:30:00.000Z"
        assert shown["deadline"] == "2026-11-21T11:30:00.123Z"
        # A start time in the past does not delay the job.
        await create(api, RED, params={"not_before": "2026-11-21T09:00:00Z"})
        assert len(api.messages()) == 1


@pytest.mark.parametrize("mail", [False, True], ids=["e-mail is off", "domain is not allowed"])
async def test_address_that_cannot_be_notified_is_refused(
    tmp_path: Path, colour_bundle: Path, mail: bool
) -> None:
    enabled = {"smtp_url": "smtp://mail.example.org", "email_from": "glimpse@example.org"}
    settings = api_settings(tmp_path, colour_bundle, **(enabled if mail else {}))
    async with open_api(settings) as api:
        for options in (
            {"files": files(RED), "params": {"notify_email": "ada@example.com"}},
            {"json": {"image_hashes": [sha256(RED)], "notify_email": "ada@example.com"}},
        ):
            response = await api.client.post(CREATE, **options)
            assert (response.status_code, response.json()["field"]) == (422, "notify_email")
        assert (await api.client.get("/api/v1/jobs")).json()["jobs"] == []
        assert api.messages() == []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"params": {"priority": "urgent"}}, "priority"),
        ({"params": {"not_before": "soon"}}, "not_before"),
        ({"params": {"notify_email": "nobody"}}, "notify_email"),
        ({"headers": {"Cancel-After": "1s"}}, "Cancel-After"),
        ({"headers": {"Idempotency-Key": "x" * 256}}, "Idempotency-Key"),
    ],
)
async def test_invalid_options_are_refused_unread(
    api: Api, options: dict[str, Any], field: str
) -> None:
    problem = assert_problem(
        await api.client.post(CREATE, files=files(RED), **options), 422, "invalid_request"
    )
    assert problem["field"] == field
    assert api.traces() == NOTHING


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (form(*[part(RED)] * 1001), FORM, 413, "batch_too_large"),
        (archive((f"{n}", b"x") for n in range(1001)), "application/zip", 413, "batch_too_large"),
        (json.dumps({"image_hashes": [UNKNOWN] * 1001}).encode(), "application/json", 413, ""),
        (
            form(
                part(RED), *[part(b"x")] * 999, manifest(b'{"image_hashes":["' + b"0" * 64 + b'"]}')
            ),
            FORM,
            413,
            "batch_too_large",
        ),
        (form(part(RED), manifest(b"{")), FORM, 422, "invalid_request"),
        (form(part(RED), manifest(b'{"gs_prefix":"gs://a/b"}')), FORM, 422, "invalid_request"),
        (form(part(RED), end=b""), FORM, 400, "malformed_body"),
        (archive({"a": RED})[:-9], "application/zip", 400, "malformed_body"),
        (b"{", "application/json", 422, "invalid_request"),
        (form(), FORM, 422, "invalid_request"),
        (form(manifest(b"{}")), FORM, 422, "invalid_request"),
        (archive({"folder/": b""}), "application/zip", 422, "invalid_request"),
        (b"{}", "application/json", 422, "invalid_request"),
        (b"", "application/json", 422, "invalid_request"),
        (RED, "image/jpeg", 415, "unsupported_media_type"),
        (RED, "", 415, "unsupported_media_type"),
    ],
)
async def test_invalid_batch_creates_nothing(
    api: Api, body: bytes, content_type: str, status: int, code: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = await api.client.post(CREATE, content=body, headers=headers)
    assert_problem(response, status, code or response.json()["code"])
    assert nothing_created(api)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"gs_prefix":"gs://photos/a"}', "application/json"),
        (form(part(RED), manifest(b'{"gs_prefix":"gs://photos/a"}')), FORM),
    ],
)
async def test_bucket_import_needs_a_google_backend(
    tmp_path: Path, colour_bundle: Path, body: bytes, content_type: str
) -> None:
    """The refusal names the setting, although the bucket is allowed."""
    async with open_api(api_settings(tmp_path, colour_bundle, import_buckets="photos")) as api:
        response = await api.client.post(
            CREATE, content=body, headers={"Content-Type": content_type}
        )
        problem = assert_problem(response, 422, "invalid_request")
        assert problem["field"] == "gs_prefix"
        assert "BACKEND" in problem["detail"]
        assert nothing_created(api)


async def test_largest_batch_is_accepted(api: Api) -> None:
    """Most of its 1,000 images are invalid, to save time."""
    images = [RED, *(b"%d" % n for n in range(998)), BLUE]
    found = await items(api, await create(api, *images))
    assert [item.position for item in found] == list(range(1000))
    assert codes(found) == ["", *["unsupported_image"] * 998, ""]


async def test_batch_above_max_batch_bytes_is_refused(tmp_path: Path, colour_bundle: Path) -> None:
    settings = api_settings(tmp_path, colour_bundle, max_batch_bytes=2000)
    async with open_api(settings) as api:
        body = form(*[part(RED)] * 10)
        response = await api.client.post(CREATE, content=body, headers={"Content-Type": FORM})
        problem = assert_problem(response, 413, "batch_too_large")
        assert problem["max_bytes"] == 2000
        packed = archive({f"{n}": bytes(1500) for n in range(2)})
        response = await api.client.post(CREATE, content=packed, headers=ZIP)
        assert_problem(response, 413, "batch_too_large")
        assert nothing_created(api)


async def test_images_in_a_batch_count_as_usage(tmp_path: Path, colour_bundle: Path) -> None:
    settings = api_settings(tmp_path, colour_bundle, api_keys="required")
    async with open_api(settings, MovableClock()) as keyed:  # so that the day does not change
        key = await keyed.issue("acme", Scope.JOBS, Scope.READ)
        await create(keyed, RED, BLUE, b"bad", headers=bearer(key))
        await keyed.authenticator.write_usage()
        usage = await keyed.client.get("/api/v1/usage", headers=bearer(key))
    (row,) = usage.json()["usage"]
    assert (row["images"], row["bytes"]) == (3, len(RED) + len(BLUE) + 3)


async def test_images_of_a_refused_batch_count_as_usage(
    tmp_path: Path, colour_bundle: Path
) -> None:
    """The service has read and stored them."""
    settings = api_settings(tmp_path, colour_bundle, api_keys="required")
    async with open_api(settings, MovableClock()) as keyed:
        key = await keyed.issue("acme", Scope.JOBS, Scope.READ)
        body = form(part(RED), part(BLUE), part(b"x", "no such field"))

        async def chunks() -> AsyncIterator[bytes]:
            for chunk in cut(body, 64):
                yield chunk

        headers = {**bearer(key), "Content-Type": FORM}
        response = await keyed.client.post(CREATE, content=chunks(), headers=headers)
        assert_problem(response, 422, "invalid_request")
        await keyed.authenticator.write_usage()
        usage = await keyed.client.get("/api/v1/usage", headers=bearer(key))
    (row,) = usage.json()["usage"]
    assert (row["images"], row["bytes"]) == (2, len(RED) + len(BLUE))


# --- Idempotency. ---------------------------------------------------------------------------------


def under(key: str) -> dict[str, Any]:
    return {"headers": {"Idempotency-Key": key}}


async def test_same_key_and_batch_create_one_job(api: Api) -> None:
    first = await create(api, RED, b"bad", **under("a"))
    before = api.traces()
    again = await api.client.post(CREATE, files=files(RED, b"bad"), **under("a"))
    assert (again.status_code, again.json()["job_id"]) == (202, first)
    assert api.traces() == before
    await run(api, first)
    last = await api.client.post(CREATE, files=files(RED, b"bad"), **under("a"))
    assert last.json()["status"] == "completed"
    assert await create(api, RED, b"bad", **under("b")) != first
    assert await create(api, RED, b"bad") != first


async def test_same_key_with_another_batch_is_refused(api: Api) -> None:
    first = await create(api, RED, BLUE, **under("a"))
    before = api.traces()
    for images, params in (
        ((RED,), {}),
        ((BLUE, RED), {}),
        ((RED, BLUE), {"priority": "low"}),
    ):
        response = await api.client.post(CREATE, files=files(*images), params=params, **under("a"))
        problem = assert_problem(response, 422, "idempotency_key_reused")
        assert problem["job_id"] == first
    entries = [{"image_hash": sha256(RED), "metadata": {"a": 1}}, sha256(BLUE)]
    response = await by_hash(api, *entries, **under("a"))
    assert_problem(response, 422, "idempotency_key_reused")
    assert api.traces() == before
    # Another media type with the same contents is the same request.
    assert (await by_hash(api, sha256(RED), sha256(BLUE), **under("a"))).json()["job_id"] == first


async def test_idempotency_keys_of_different_api_keys_are_independent(keyed: Api) -> None:
    ids = set()
    for tenant in ("acme", "acme", "other"):
        headers = {**bearer(await keyed.issue(tenant)), "Idempotency-Key": "a"}
        ids.add(await create(keyed, RED, headers=headers))
    assert len(ids) == 3


async def test_concurrent_requests_with_one_key_create_one_job(api: Api) -> None:
    images = [picture(n, size=(8, 8)) for n in range(20)]
    made = await asyncio.gather(*(create(api, *images, *images, **under("a")) for _ in range(5)))
    assert len(set(made)) == 1
    found = await items(api, made[0])
    assert [item.image_hash for item in found] == [sha256(image) for image in images] * 2
    assert (await run(api, made[0])).counts == jobs.Counts(40, 40, 0)


class Failing:
    """A port whose calls fail by `plan`: the name of a call, and whether it takes effect."""

    def __init__(self, port: object, plan: dict[str, bool]) -> None:
        self._port, self._plan = port, plan

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if name not in self._plan:
            return method

        async def fails(*args: Any, **options: Any) -> None:
            if self._plan[name]:
                await method(*args, **options)
            raise Unavailable("A fault was injected.")

        return fails


@asynccontextmanager
async def failing_api(
    tmp_path: Path, colour_bundle: Path, **plans: dict[str, bool]
) -> AsyncIterator[Api]:
    """An API whose ports fail by `plans`, which the test may change."""

    @asynccontextmanager
    async def opener(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[Backend]:
        async with open_backend(settings, clock) as backend:
            ports: dict[str, Any] = {
                name: Failing(getattr(backend, name), plan) for name, plan in plans.items()
            }
            yield dataclasses.replace(backend, **ports)

    async with open_api(api_settings(tmp_path, colour_bundle), opener=opener) as api:
        yield api


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("port", "call"),
    [
        *(("jobs", "create"), ("jobs", "get"), ("jobs", "add_items"), ("jobs", "change")),
        *(("records", "get_many"), ("records", "create"), ("blobs", "put"), ("blobs", "exists")),
    ],
)
async def test_interrupted_creation_continues(
    tmp_path: Path,
    colour_bundle: Path,
    port: str,
    call: str,
    after: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The job is not visible before."""
    monkeypatch.setattr("app.batches.storing.PAUSES", (0.0, 0.0, 0.0))
    plan = {call: after}
    async with failing_api(tmp_path, colour_bundle, **{port: plan}) as api:
        images = files(RED, BLUE, RED, b"bad")
        response = await api.client.post(CREATE, files=images, **under("a"))
        assert_problem(response, 503, "unavailable")
        assert "retry-after" in response.headers
        plan.clear()
        if call != "change":
            assert (await api.client.get(JOBS)).json()["jobs"] == []
        job_id = await create(api, RED, BLUE, RED, b"bad", **under("a"))
        made = await run(api, job_id)
        assert (made.status, made.counts) == (JobStatus.COMPLETED, jobs.Counts(4, 3, 1))
        assert api.rows("jobs") == 1


def in_two_hours(transition: Transition[Job]) -> Transition[Job]:
    def step(job: Job, now: datetime) -> Job | None:
        return transition(job, now + timedelta(hours=2))

    return dataclasses.replace(transition, step=step)


async def test_creation_does_not_continue_a_job_that_is_being_deleted(
    tmp_path: Path, colour_bundle: Path
) -> None:
    """Requests are refused while the scheduler deletes the job. The next one creates a new job."""
    plan = {"change": False}
    async with failing_api(tmp_path, colour_bundle, jobs=plan) as api:
        for _ in range(2):
            response = await api.client.post(CREATE, files=files(RED), **under("a"))
            assert_problem(response, 503, "unavailable")
            plan.clear()
            store = api.services.backend.jobs
            for late in await store.due(utc_now() + timedelta(hours=2), 10):
                assert await store.change(late.key, in_two_hours(jobs.reschedule(late.wake_at)))
        assert await store.delete(late.key)
        assert (await job(api, await create(api, RED, **under("a")))).sealed


async def test_stored_items_stay_when_a_creation_continues(
    tmp_path: Path, colour_bundle: Path
) -> None:
    plan = {"change": False}
    async with failing_api(tmp_path, colour_bundle, jobs=plan) as api:
        hashes = [sha256(RED), sha256(BLUE), sha256(RED)]
        await api.services.backend.blobs.put(f"public/{sha256(BLUE)}", BLUE, "image/jpeg")
        response = await by_hash(api, *hashes, **under("a"))
        assert_problem(response, 503, "unavailable")
        # The first request stored one item. Then another client uploaded the missing image.
        await api.services.backend.blobs.put(f"public/{sha256(RED)}", RED, "image/jpeg")
        api.execute("DELETE FROM job_items WHERE position > 0")
        plan.clear()
        response = await by_hash(api, *hashes, **under("a"))
        found = await items(api, response.json()["job_id"])
        assert codes(found) == ["not_uploaded", "", ""]
        made = await run(api, response.json()["job_id"])
        assert (made.status, made.counts) == (JobStatus.COMPLETED, jobs.Counts(3, 2, 1))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_scheduler_starts_a_sealed_job_without_message(
    tmp_path: Path, colour_bundle: Path, after: bool
) -> None:
    """Within 30 seconds."""
    async with failing_api(tmp_path, colour_bundle, publisher={"publish": after}) as api:
        made = await job(api, await create(api, RED))
        (due,) = await api.services.backend.jobs.due(utc_now() + timedelta(seconds=31), 10)
        assert due.key == made.key
        assert jobs.due_action(due, due.wake_at) is jobs.Action.RUN


async def test_disconnect_creates_no_job(api: Api) -> None:
    body = form(part(RED), part(BLUE))

    async def interrupted() -> AsyncIterator[bytes]:
        yield body[: len(body) // 2]
        raise ClientDisconnect

    response = await api.client.post(CREATE, content=interrupted(), headers={"Content-Type": FORM})
    assert response.status_code == 499
    assert nothing_created(api)
    assert api.services.uploads.in_flight == api.services.uploads.bytes_reserved == 0


async def refused(api: Api, *images: bytes) -> None:
    """Send a batch that is refused for its last part, after these images have been stored."""
    delimiter = f"--{BOUNDARY}\r\n".encode()
    body = form(*map(part, images), part(b"x", "no such field"))
    begin, _, end = body.rpartition(delimiter)

    async def all_stored() -> bool:
        return api.traces().blobs == len(images)

    async def body_in_parts() -> AsyncIterator[bytes]:
        yield begin + delimiter
        await eventually(all_stored)
        yield end

    response = await api.client.post(
        CREATE, content=body_in_parts(), headers={"Content-Type": FORM}
    )
    assert_problem(response, 422, "invalid_request")
    assert nothing_created(api)
    assert api.traces().blobs == len(images)


async def test_images_of_a_refused_batch_need_no_second_upload(api: Api) -> None:
    await refused(api, RED, BLUE)
    hashes = [sha256(RED), sha256(BLUE)]
    found = (await api.client.post("/api/v1/images/lookup", json={"image_hashes": hashes})).json()
    assert (list(found["known"]), found["missing"]) == (hashes, [])
    job_id = (await by_hash(api, *hashes)).json()["job_id"]
    assert (await run(api, job_id)).counts.succeeded == 2


async def test_images_of_a_refused_batch_can_be_deleted(api: Api) -> None:
    await refused(api, RED)
    path = f"/api/v1/images/{sha256(RED)}"
    assert (await api.client.delete(path)).status_code == 204
    assert api.traces() == NOTHING
    assert (await api.client.delete(path)).status_code == 404


async def test_batch_without_a_slot_is_refused_unread(tmp_path: Path, colour_bundle: Path) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        uploads = api.services.uploads
        uploads.limits = dataclasses.replace(uploads.limits, max_uploads=1)
        with uploads.slot():
            response = await api.client.post(CREATE, files=files(RED))
        assert_problem(response, 503, "overloaded")
        assert api.traces() == NOTHING


# --- Reading. -------------------------------------------------------------------------------------


async def test_job_shows_its_progress(tmp_path: Path, colour_bundle: Path) -> None:
    clock = MovableClock()
    settings = api_settings(tmp_path, colour_bundle, public_url="https://glimpse.example")
    async with open_api(settings, clock) as api:
        job_id = await create(
            api, RED, BLUE, RED, b"bad", params={"priority": "high", "name": "Summer"}
        )
        url = f"https://glimpse.example{JOBS}/{job_id}"
        response = await api.client.get(f"{JOBS}/{job_id}")
        assert response.headers["cache-control"] == "no-store"
        first = response.json()
        assert first == {
            "job_id": job_id,
            "name": "Summer",
            "retry_of": None,
            "type": "batch-predict",
            "status": "pending",
            "progress": 0,
            "total": 4,
            "succeeded": 0,
            "failed": 0,
            "cancelled": 0,
            "priority": "high",
            "model": api.services.model,
            "trained_model": None,
            "created_at": "2026-11-21T09:30:00.123Z",
            "started_at": None,
            "completed_at": None,
            "not_before": None,
            "deadline": None,
            "result": None,
            "error": None,
            "poll_url": url,
            "stream_url": url + "/stream",
            "results_url": url + "/results",
        }
        clock.move(1)
        await api.services.backend.jobs.change(JobKey(PUBLIC_TENANT, job_id), jobs.start())
        clock.move(1)
        await api.succeed(sha256(RED))
        for position in (0, 2):
            await api.services.backend.jobs.complete_item(
                JobKey(PUBLIC_TENANT, job_id), position, None, timedelta(0)
            )
        half = (await api.client.get(f"{JOBS}/{job_id}")).json()
        assert half == {
            **first,
            "status": "running",
            "progress": 75,
            "succeeded": 2,
            "failed": 1,
            "started_at": "2026-11-21T09:30:01.123Z",
        }
        clock.move(1)
        await run(api, job_id)
        assert (await api.client.get(f"{JOBS}/{job_id}")).json() == {
            **half,
            "status": "completed",
            "progress": 100,
            "succeeded": 3,
            "completed_at": "2026-11-21T09:30:03.123Z",
            "result": "3 of 4 images classified, 1 failed.",
        }


async def test_failed_job_shows_its_error(api: Api) -> None:
    job_id = await create(api, RED)
    error = RecordError("expired", "It took too long.", False)
    await api.services.backend.jobs.change(JobKey(PUBLIC_TENANT, job_id), jobs.fail(error))
    shown = (await api.client.get(f"{JOBS}/{job_id}")).json()
    assert shown["status"] == "failed"
    assert shown["error"] == {"code": "expired", "detail": "It took too long.", "retryable": False}
    assert shown["result"] == "0 of 1 image classified, 1 not begun."
    assert [each["status"] for each in await results(api, job_id)] == ["cancelled"]


@pytest.mark.parametrize("job_id", ["ab" * 16, "x", "AB" * 16, "ab" * 17, "%00"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_unknown_job_is_not_found(api: Api, method: str, job_id: str) -> None:
    assert_problem(await api.client.request(method, f"{JOBS}/{job_id}"), 404, "not_found")


@pytest.mark.parametrize(
    "kind", ["application/zip", "application/octet-stream", "application/x-www-form-urlencoded", ""]
)
async def test_zip_has_a_separate_path(api: Api, kind: str) -> None:
    """Whatever the client calls it. curl sends the type of a form."""
    headers = {"Content-Type": kind} if kind else {}
    body = archive({"a.png": RED, "b.png": BLUE})
    answer = await api.client.post(f"{CREATE}/zip", content=body, headers=headers)
    assert answer.status_code == 202
    found = await results(api, answer.json()["job_id"])
    assert [each["name"] for each in found] == ["a.png", "b.png"]


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
async def test_hashes_have_a_path_of_their_own(api: Api, kind: str) -> None:
    await api.client.post("/api/v1/images", content=RED)
    headers = {"Content-Type": kind}
    body = json.dumps({"image_hashes": [sha256(RED)], "priority": "low"}).encode()
    answer = await api.client.post(f"{CREATE}/hashes", content=body, headers=headers)
    assert answer.status_code == 202
    job_id = answer.json()["job_id"]
    assert (await job(api, job_id)).priority is Priority.LOW
    assert [each["image_hash"] for each in await results(api, job_id)] == [sha256(RED)]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("zip", "application/json"),
        ("zip", "multipart/form-data; boundary=x"),
        ("hashes", "application/zip"),
        ("hashes", "multipart/form-data; boundary=x"),
        ("hashes", "text/csv"),
        ("hashes", ""),
    ],
)
async def test_path_for_one_kind_of_body_refuses_others(api: Api, path: str, kind: str) -> None:
    headers = {"Content-Type": kind}
    answer = await api.client.post(f"{CREATE}/{path}", content=b"{}", headers=headers)
    problem = assert_problem(answer, 415, "unsupported_media_type")
    assert problem["accepted"] == ["application/zip" if path == "zip" else "application/json"]
    assert nothing_created(api)


HOOK = "https://93.184.215.14/own"  # an address: no name server is needed


async def test_job_has_a_separate_webhook(api: Api) -> None:
    query = f"?webhook={HOOK}&webhook_events=job.failed,job.completed"
    answer = await api.client.post(CREATE + query, files=files(RED))
    assert answer.status_code == 202
    body = answer.json()
    stored = (await job(api, body["job_id"])).webhook
    assert stored is not None
    assert (stored.url, stored.secret) == (HOOK, body["webhook_secret"])
    assert stored.events == frozenset({"job.failed", "job.completed"})
    assert len(parse_secret(stored.secret)) >= 24
    assert stored.secret not in repr(stored)
    shown = (await api.client.get(f"{JOBS}/{body['job_id']}")).text
    assert stored.secret not in shown and HOOK not in shown
    # A document can name it as well.
    answer = await by_hash(api, sha256(RED), document={"webhook": HOOK})
    stored = (await job(api, answer.json()["job_id"])).webhook
    assert stored is not None and stored.events == frozenset()


async def test_repeated_request_gets_the_same_secret(api: Api) -> None:
    secrets = set()
    for _ in range(2):
        answer = await api.client.post(
            f"{CREATE}?webhook={HOOK}", files=files(RED), headers={"Idempotency-Key": "a"}
        )
        secrets.add(answer.json()["webhook_secret"])
    assert len(secrets) == 1
    answer = await api.client.post(
        f"{CREATE}?webhook={HOOK}2", files=files(RED), headers={"Idempotency-Key": "a"}
    )
    assert_problem(answer, 422, "idempotency_key_reused")


@pytest.mark.parametrize("known", [False, True])
async def test_upload_with_a_webhook_is_a_job_of_one_image(api: Api, known: bool) -> None:
    if known:
        await api.client.post("/api/v1/images", content=RED)
        await api.finish_submissions()
        await api.succeed(sha256(RED))
    for method, path in (("POST", ""), ("PUT", f"/{sha256(RED)}")):
        url = f"/api/v1/images{path}?webhook={HOOK}&webhook_events=job.completed"
        answer = await api.client.request(method, url, content=RED)
        assert answer.status_code == (200 if known else 202)
        assert answer.json()["image_hash"] == sha256(RED)
        job_id = answer.headers["link"].partition(">")[0].rpartition("/")[2]
        created = await job(api, job_id)
        assert created.webhook is not None and created.sealed
        assert created.webhook.secret == answer.headers["webhook-secret"]
        assert created.webhook.url == HOOK
        assert created.webhook.events == frozenset({"job.completed"})
        assert [item.image_hash for item in await items(api, job_id)] == [sha256(RED)]
        assert created.model == api.services.model


@pytest.mark.parametrize(("method", "path"), [("POST", ""), ("PUT", f"/{sha256(RED)}")])
async def test_repeated_upload_with_a_webhook_is_one_job(api: Api, method: str, path: str) -> None:
    jobs = []
    for key in ("a", "a", "b", None, None):
        headers = {} if key is None else {"Idempotency-Key": key}
        url = f"/api/v1/images{path}?webhook={HOOK}"
        answer = await api.client.request(method, url, content=RED, headers=headers)
        jobs.append((answer.headers["link"], answer.headers["webhook-secret"]))
    assert jobs[0] == jobs[1]
    assert len(set(jobs)) == 4
    assert api.rows("jobs") == 4


async def test_upload_under_the_key_of_another_upload_stores_nothing(api: Api) -> None:
    url, headers = f"/api/v1/images?webhook={HOOK}", {"Idempotency-Key": "a"}
    await api.client.post(url, content=RED, headers=headers)
    before = api.traces()
    answers = [
        await api.client.post(url, content=BLUE, headers=headers),
        await api.client.post(f"{url}2", content=RED, headers=headers),
        await api.client.post(url, content=RED, headers={"Idempotency-Key": "\x7f"}),
    ]
    assert assert_problem(answers[0], 422, "idempotency_key_reused")["job_id"]
    assert_problem(answers[1], 422, "idempotency_key_reused")
    assert assert_problem(answers[2], 422, "invalid_request")["field"] == "Idempotency-Key"
    assert api.traces() == before
    assert api.rows("jobs") == 1


async def test_upload_without_a_webhook_is_no_job(api: Api) -> None:
    answer = await api.client.post("/api/v1/images?labels=1", content=RED)
    assert answer.status_code == 202
    assert "link" not in answer.headers
    assert api.rows("jobs") == 0


@pytest.mark.parametrize("query", ["webhook=https://127.0.0.1/", "webhook_events=job.failed"])
async def test_upload_with_an_invalid_webhook_stores_nothing(api: Api, query: str) -> None:
    answer = await api.client.post(f"/api/v1/images?{query}", content=RED)
    assert answer.status_code == 422
    assert api.traces() == NOTHING
    assert api.rows("jobs") == 0


@pytest.mark.parametrize(
    ("query", "code", "field"),
    [
        ("webhook=https://127.0.0.1/", "private_address", "webhook"),
        ("webhook=http://93.184.215.14/", "invalid_request", "webhook"),
        ("webhook=mail", "invalid_request", "webhook"),
        (f"webhook={HOOK}&webhook={HOOK}", "invalid_request", "webhook"),
        (f"webhook={HOOK}&webhook_events=job.done", "invalid_request", "webhook_events"),
        (f"webhook={HOOK}&webhook_events=", "invalid_request", "webhook_events"),
        ("webhook_events=job.failed", "invalid_request", "webhook_events"),
    ],
)
async def test_invalid_webhook_is_refused_and_nothing_is_stored(
    api: Api, query: str, code: str, field: str
) -> None:
    answer = await api.client.post(f"{CREATE}?{query}", files=files(RED))
    assert assert_problem(answer, 422, code)["field"] == field
    assert nothing_created(api)


async def test_405_lists_the_methods_of_a_job(api: Api) -> None:
    response = await api.client.put(f"{JOBS}/{UNKNOWN[:32]}")
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "DELETE, GET, HEAD"


async def test_unsealed_job_is_not_found(tmp_path: Path, colour_bundle: Path) -> None:
    async with failing_api(tmp_path, colour_bundle, jobs={"change": False}) as api:
        await api.client.post(CREATE, files=files(RED), **under("a"))
        job_id = jobs.job_id_for(PUBLIC_TENANT, "", "a")
        assert not (await job(api, job_id)).sealed
        for path in ("", "/results"):
            response = await api.client.get(f"{JOBS}/{job_id}{path}")
            assert_problem(response, 404, "not_found")
        assert (await api.client.get(JOBS)).json() == {"jobs": [], "next_cursor": None}


async def test_jobs_are_listed_newest_first_in_pages(tmp_path: Path, colour_bundle: Path) -> None:
    clock = MovableClock()
    async with open_api(api_settings(tmp_path, colour_bundle), clock) as api:
        made = []
        for _ in range(5):
            clock.move(1)
            made.append(await create(api, RED))
        await run(api, made[1])
        listed, cursor = [], ""
        for expected in (2, 2, 1):
            response = await api.client.get(f"{JOBS}?limit=2&cursor={cursor}")
            page = response.json()
            assert len(page["jobs"]) == expected
            listed += [each["job_id"] for each in page["jobs"]]
            cursor = page["next_cursor"]
        assert listed == made[::-1]
        assert cursor is None
        for query, expected_ids in (
            ("status=completed", [made[1]]),
            ("status=pending&limit=1", [made[4]]),
            ("status=cancelled", []),
            ("type=batch-predict", made[::-1]),
            ("status=completed&type=batch-predict", [made[1]]),
        ):
            page = (await api.client.get(f"{JOBS}?{query}")).json()
            assert [each["job_id"] for each in page["jobs"]] == expected_ids


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=ten", "limit"),
        ("limit=0000000011000", "limit"),  # starts like a small number
        ("limit=000000001" + 5000 * "0", "limit"),
        ("cursor=nonsense", "cursor"),
        ("cursor=%C3%A4", "cursor"),
        ("status=done", "status"),
        ("type=training", "type"),
    ],
)
async def test_invalid_list_parameters_are_refused(api: Api, query: str, field: str) -> None:
    problem = assert_problem(await api.client.get(f"{JOBS}?{query}"), 422, "invalid_request")
    assert problem["field"] == field


# --- Access. --------------------------------------------------------------------------------------


async def test_job_is_visible_to_its_key_and_to_administrators(keyed: Api) -> None:
    owner, other = [await keyed.issue("acme", Scope.JOBS) for _ in range(2)]
    admin = await keyed.issue("acme", Scope.JOBS, Scope.ADMIN)
    stranger = await keyed.issue("other")
    reader = await keyed.issue("acme", Scope.READ, Scope.CLASSIFY)
    job_id = await create(keyed, RED, headers=bearer(owner))
    expected = {owner: 200, admin: 200, other: 403, stranger: 404, reader: 403}
    for key, status in expected.items():
        for path in ("", "/results"):
            response = await keyed.client.get(f"{JOBS}/{job_id}{path}", headers=bearer(key))
            assert response.status_code == status
    listed = {owner: 1, admin: 1, other: 0, stranger: 0}
    for key, count in listed.items():
        response = await keyed.client.get(JOBS, headers=bearer(key))
        assert len(response.json()["jobs"]) == count
    for key in (other, stranger, reader):
        response = await keyed.client.delete(f"{JOBS}/{job_id}", headers=bearer(key))
        assert response.status_code == expected[key]
    assert (await job(keyed, job_id, "acme")).status is JobStatus.PENDING
    response = await keyed.client.delete(f"{JOBS}/{job_id}", headers=bearer(admin))
    assert (response.status_code, response.json()["status"]) == (200, "cancelled")


async def test_jobs_require_the_scope_jobs(keyed: Api) -> None:
    key = await keyed.issue("acme", Scope.READ, Scope.CLASSIFY, Scope.ADMIN)
    response = await keyed.client.post(CREATE, files=files(RED), headers=bearer(key))
    assert_problem(response, 403, "forbidden")
    assert keyed.traces() == NOTHING


async def test_hash_gives_no_access_to_images_of_other_tenants(keyed: Api) -> None:
    await create(keyed, RED, headers=bearer(await keyed.issue("acme")))
    other = bearer(await keyed.issue("other"))
    response = await by_hash(keyed, sha256(RED), headers=other)
    assert codes(await items(keyed, response.json()["job_id"], "other")) == ["not_uploaded"]


# --- Results. -------------------------------------------------------------------------------------


async def test_results_join_items_and_records(api: Api) -> None:
    body = {
        "image_hashes": [
            {"image_hash": sha256(RED), "metadata": {"shelf": 7}},
            sha256(BLUE),
            UNKNOWN,
            sha256(RED),
        ]
    }
    parts = [manifest(json.dumps(body).encode()), part(RED, filename=b"red.jpg"), part(BLUE)]
    response = await api.client.post(CREATE, content=form(*parts), headers={"Content-Type": FORM})
    job_id = response.json()["job_id"]
    red = {
        "index": 0,
        "image_hash": sha256(RED),
        "name": "red.jpg",
        "status": "pending",
        "annotations": [],
        "categories": [],
        "confident": None,
        "output": None,
        "error": None,
        "metadata": {"shelf": 7},
    }
    first = await results(api, job_id)
    assert first[0] == red
    assert first[2] == {
        "index": 2,
        "image_hash": UNKNOWN,
        "name": None,
        "status": "failed",
        "annotations": [],
        "categories": [],
        "confident": None,
        "output": None,
        "error": {
            "code": "not_uploaded",
            "detail": "The service has no image with this hash. Upload the image.",
            "retryable": True,
        },
        "metadata": {},
    }
    key = JobKey(PUBLIC_TENANT, job_id)
    claim = await claimed(api.records, api.key(sha256(BLUE)), LEASE)
    assert claim is not None
    assert (await results(api, job_id))[1]["status"] == "running"
    await api.succeed(sha256(RED))
    assert (await results(api, job_id))[0]["status"] == "running", "the item is not complete yet"
    for position in (0, 3):
        await api.services.backend.jobs.complete_item(key, position, None, timedelta(0))
    error = RecordError("undecodable_image", "The image is truncated.", False)
    await api.records.change(claim.key, fail(claim, error))
    await api.services.backend.jobs.complete_item(key, 1, error, timedelta(0))
    last = await results(api, job_id)
    labels = [
        {"index": 1, "label": "red", "confidence": 0.75},
        {"index": 2, "label": "grey", "confidence": 0.25},
    ]
    assert last[0] == {
        **red,
        "status": "succeeded",
        "annotations": labels,
        "categories": [{"index": 1, "label": "colour", "confidence": 1.0}],
        "confident": True,
        "output": None,
    }
    assert last[3] == {**last[0], "index": 3, "metadata": {}}
    assert (last[1]["status"], last[1]["annotations"]) == ("failed", [])
    assert last[1]["error"]["code"] == "undecodable_image"


async def test_deleted_image_is_a_failed_result(api: Api) -> None:
    job_id = await create(api, RED)
    await run(api, job_id)
    assert (await api.client.delete(f"/api/v1/images/{sha256(RED)}")).status_code == 204
    (result,) = await results(api, job_id)
    assert (result["status"], result["annotations"]) == ("failed", [])
    assert result["error"]["code"] == "result_deleted"


async def ended_job(api: Api, count: int) -> str:
    """The id of a job of `count` images that has ended. Every third image is invalid."""
    images = [b"bad %d" % n if n % 3 == 0 else picture(n, size=(8, 8)) for n in range(count)]
    job_id = await create(api, *images)
    await run(api, job_id)
    return job_id


async def test_results_are_paged_in_order(api: Api) -> None:
    job_id = await ended_job(api, 25)
    found, cursor, pages = [], "", 0
    while cursor is not None:
        response = await api.client.get(f"{JOBS}/{job_id}/results?limit=10&cursor={cursor}")
        page = response.json()
        assert (page["job_id"], page["status"]) == (job_id, "completed")
        assert response.headers["vary"] in ("Accept", "Accept, Accept-Encoding")
        found += page["results"]
        cursor, pages = page["next_cursor"], pages + 1
    assert pages == 3
    assert [each["index"] for each in found] == list(range(25))
    assert [each["status"] for each in found] == [
        "succeeded" if n % 3 else "failed" for n in range(25)
    ]
    # The last page has no cursor, even if it is full.
    response = await api.client.get(f"{JOBS}/{job_id}/results?limit=25")
    assert response.json()["next_cursor"] is None


async def test_results_are_filtered_by_status_and_label(api: Api) -> None:
    job_id = await ended_job(api, 25)
    url = f"{JOBS}/{job_id}/results"
    whole = await results(api, job_id)
    failed = [each for each in whole if each["status"] == "failed"]
    red = [each for each in whole if each["status"] == "succeeded"]
    for query, expected in (
        ("status=failed", failed),
        ("status=succeeded", red),
        ("status=failed&status=succeeded", whole),
        ("status=cancelled", []),
        ("label=red", red),
        ("label=grey&status=succeeded", red),  # not the best label
        ("label=red&status=failed", []),
        ("label=blue", []),
        ("status=&label=", whole),
    ):
        response = await api.client.get(f"{url}?limit=1000&{query}")
        assert response.json()["results"] == expected, query
        lines = await api.client.get(f"{url}?format=ndjson&{query}")
        assert [json.loads(line) for line in lines.text.splitlines()] == expected, query
    # Pages have only what the filter selects, and none is left out.
    found: list[Any] = []
    cursor = ""
    while cursor is not None:
        page = (await api.client.get(f"{url}?status=failed&limit=4&cursor={cursor}")).json()
        assert len(page["results"]) <= 4
        found += page["results"]
        cursor = page["next_cursor"]
    assert found == failed
    response = await api.client.get(f"{url}?status=broken")
    problem = assert_problem(response, 422, "invalid_request")
    assert "must be pending, queued, running, succeeded, failed or cancelled" in problem["detail"]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=0000000011000", "cursor=x", "cursor=LTE", "cursor=OTk5OTk5"],
)
async def test_invalid_result_parameters_are_refused(api: Api, query: str) -> None:
    job_id = await create(api, RED)
    response = await api.client.get(f"{JOBS}/{job_id}/results?{query}")
    assert_problem(response, 422, "invalid_request")


async def test_results_stream_as_lines_and_csv(api: Api) -> None:
    """There are more results than the service reads at a time."""
    job_id = await ended_job(api, 450)
    pages = await results(api, job_id)
    response = await api.client.get(f"{JOBS}/{job_id}/results?format=ndjson")
    assert [json.loads(line) for line in response.text.splitlines()] == pages
    assert f'filename="job-{job_id}.ndjson"' in response.headers["content-disposition"]
    plain = await api.client.get(f"{JOBS}/{job_id}/results?format=csv")
    excel = await api.client.get(f"{JOBS}/{job_id}/results?format=csv-excel")
    assert excel.content == b"\xef\xbb\xbf" + plain.content
    assert excel.headers["content-type"] == "text/csv; charset=utf-8"
    for format_ in ("csv", "ndjson"):
        alias = await api.client.get(f"{JOBS}/{job_id}/results/{format_}?status=failed")
        same = await api.client.get(f"{JOBS}/{job_id}/results?format={format_}&status=failed")
        assert (alias.content, alias.headers["content-type"]) == (
            same.content,
            same.headers["content-type"],
        )
    # A parameter takes precedence over the header. A link in a page cannot set headers.
    response = await api.client.get(
        f"{JOBS}/{job_id}/results?format=json", headers={"Accept": "text/csv"}
    )
    assert response.headers["content-type"] == "application/json"
    for accept in ("application/x-ndjson", "application/x-ndjson, application/json;q=0.5"):
        response = await api.client.get(f"{JOBS}/{job_id}/results", headers={"Accept": accept})
        assert response.headers["content-type"] == "application/x-ndjson"
        assert response.headers["cache-control"] == "no-store"
        assert [json.loads(line) for line in response.text.splitlines()] == pages
        assert response.text.endswith("}\n")
    response = await api.client.get(f"{JOBS}/{job_id}/results", headers={"Accept": "text/csv"})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert f"job-{job_id}.csv" in response.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert [int(row["index"]) for row in rows] == list(range(450))
    assert rows[0]["error_code"] == "unsupported_image"
    assert (rows[1]["label"], float(rows[1]["confidence"])) == ("red", 0.75)
    for name in ("annotations", "categories", "confident"):
        assert json.loads(rows[1][name]) == pages[1][name]
        assert rows[0][name] == ""
    assert pages[1]["categories"]
    assert pages[1]["confident"] is True


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=HYPERLINK(1).jpg", "'=HYPERLINK(1).jpg"),
        ("+1.jpg", "'+1.jpg"),
        ("-1.jpg", "'-1.jpg"),
        ("@sum.jpg", "'@sum.jpg"),
        ('a,"b".jpg', 'a,"b".jpg'),
        ("cat.jpg", "cat.jpg"),
        ("cat; dog;.jpg", "cat; dog;.jpg"),
        ("a;=1+1;@b.jpg", "a;'=1+1;'@b.jpg"),
        ('a;"=1+1;b.jpg', "a;\"'=1+1;b.jpg"),
    ],
)
async def test_csv_cells_are_not_formulas(api: Api, name: str, cell: str) -> None:
    response = await api.client.post(CREATE, content=archive({name: RED}), headers=ZIP)
    job_id = response.json()["job_id"]
    claim = await claimed(api.records, api.key(sha256(RED)), LEASE)
    assert claim is not None
    output = json.dumps({"note": name})
    end = complete(claim, [Annotation(1, name, 1.0)], output=output)
    await api.records.change(claim.key, end)
    key = JobKey(PUBLIC_TENANT, job_id)
    await api.services.backend.jobs.complete_item(key, 0, None, timedelta(0))
    response = await api.client.get(f"{JOBS}/{job_id}/results", headers={"Accept": "text/csv"})
    (row,) = csv.DictReader(io.StringIO(response.text))
    assert (row["name"], row["label"]) == (cell, cell)
    for cells in csv.reader(io.StringIO(response.text), delimiter=";"):
        assert not [each for each in cells if each.startswith(tuple("=+-@"))]
    assert ";" not in row["annotations"]
    assert json.loads(row["annotations"])[0]["label"] == name
    assert json.loads(row["output"]) == {"note": name}


async def test_unavailable_store_is_503_before_the_response_begins(
    tmp_path: Path, colour_bundle: Path
) -> None:
    plan: dict[str, bool] = {}
    async with failing_api(tmp_path, colour_bundle, jobs=plan) as api:
        job_id = await create(api, RED)
        plan["items"] = False
        for accept in ("application/json", "application/x-ndjson", "text/csv"):
            response = await api.client.get(f"{JOBS}/{job_id}/results", headers={"Accept": accept})
            assert_problem(response, 503, "unavailable")


# --- Cancelling. ----------------------------------------------------------------------------------


async def test_cancelled_job_has_ended_and_notifies(api: Api) -> None:
    job_id = await create(api, RED, BLUE, b"bad")
    response = await api.client.delete(f"{JOBS}/{job_id}")
    assert response.status_code == 200
    body = response.json()
    assert (body["status"], body["total"], body["failed"], body["cancelled"]) == (
        *("cancelled", 3),
        *(1, 2),
    )
    assert body["completed_at"] is not None
    assert body["result"] == "0 of 3 images classified, 1 failed, 2 not begun."
    assert [each["status"] for each in await results(api, job_id)] == [
        *("cancelled", "cancelled", "failed"),
    ]
    sent = [(each["kind"], each.get("event")) for each in api.messages()]
    assert sent == [("run_job", None), ("notify", "job.cancelled")]
    assert (await job(api, job_id)).announced
    # Repeating the request changes nothing.
    assert (await api.client.delete(f"{JOBS}/{job_id}")).json() == body
    assert len(api.messages()) == 2


async def ended_jobs(api: Api) -> dict[str, float]:
    """The metric of ended jobs by status."""
    seen = samples((await api.client.get("/metrics")).text)
    name = "glimpse_jobs_ended_total"
    return {key: value for key, value in seen.items() if key.startswith(name)}


async def test_cancellation_is_counted_once(api: Api) -> None:
    cancelled = series("glimpse_jobs_ended_total", status="cancelled")
    # The series exists from the start, so that its first increase is visible.
    assert await ended_jobs(api) == {cancelled: 0}
    job_id, other, done = [await create(api, image) for image in (RED, BLUE, GREEN)]
    await run(api, done)
    cancels = [api.client.delete(f"{JOBS}/{each}") for each in (job_id, job_id, other, done)]
    responses = await asyncio.gather(*cancels)
    assert [response.status_code for response in responses] == [200, 200, 200, 409]
    assert (await api.client.delete(f"{JOBS}/{job_id}")).status_code == 200
    assert (await api.client.delete(f"{JOBS}/{'0' * 32}")).status_code == 404
    assert await ended_jobs(api) == {cancelled: 2}


async def test_ended_job_cannot_be_cancelled(api: Api) -> None:
    job_id = await create(api, RED)
    await run(api, job_id)
    problem = assert_problem(await api.client.delete(f"{JOBS}/{job_id}"), 409, "conflict")
    assert "completed" in problem["detail"]
    assert (await job(api, job_id)).status is JobStatus.COMPLETED


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_failed_notification_does_not_repeat_a_cancellation(
    tmp_path: Path, colour_bundle: Path, after: bool
) -> None:
    plan: dict[str, bool] = {}
    async with failing_api(tmp_path, colour_bundle, publisher=plan) as api:
        job_id = await create(api, RED)
        plan["publish"] = after
        response = await api.client.delete(f"{JOBS}/{job_id}")
        assert (response.status_code, response.json()["status"]) == (200, "cancelled")
        made = await job(api, job_id)
        assert not made.announced
        assert jobs.due_action(made, made.wake_at) is jobs.Action.ANNOUNCE


async def test_concurrent_cancellation_and_completion_have_one_outcome(api: Api) -> None:
    draw = random.Random(7)
    for _ in range(10):
        job_id = await create(api, *(picture(draw.randrange(10**6), size=(8, 8)) for _ in range(3)))

        async def cancel(job_id: str = job_id) -> int:
            await turns(draw.randrange(200))
            return (await api.client.delete(f"{JOBS}/{job_id}")).status_code

        status, made = await asyncio.gather(cancel(), run(api, job_id))
        made = await job(api, job_id)
        assert (status, made.status) in [
            (200, JobStatus.CANCELLED),
            (409, JobStatus.COMPLETED),
        ]


# --- Retries. -------------------------------------------------------------------------------------


async def retry(api: Api, job_id: str, status: int = 202) -> dict[str, Any]:
    response = await api.client.post(f"{JOBS}/{job_id}/retry")
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    if status == 202:
        assert response.headers["location"] == f"{JOBS}/{body['job_id']}"
    return body


async def job_with_failures(api: Api) -> str:
    """A completed job whose items succeeded, failed retryably, and failed permanently."""
    params = {"name": "Summer", "priority": "high"}
    job_id = await create(api, RED, BLUE, b"bad", params=params)
    key = JobKey(PUBLIC_TENANT, job_id)
    await api.services.backend.jobs.change(key, jobs.start())
    await api.succeed(sha256(RED))
    await api.fail(sha256(BLUE), retryable=True)
    error = (await api.record(sha256(BLUE))).error
    for position, outcome in ((0, None), (1, error)):
        await api.services.backend.jobs.complete_item(key, position, outcome, timedelta(0))
    assert (await job(api, job_id)).status is JobStatus.COMPLETED
    return job_id


async def test_retry_creates_a_job_of_the_images_that_may_succeed_now(api: Api) -> None:
    job_id = await job_with_failures(api)
    again = await retry(api, job_id)
    made = await job(api, again["job_id"])
    assert (made.name, made.priority, made.retry_of) == ("Summer", Priority.HIGH, job_id)
    assert await items(api, made.key.id) == [JobItem(0, sha256(BLUE), "1.jpg")]
    assert (await api.record(sha256(BLUE))).status is Status.PENDING
    assert (await run(api, made.key.id)).counts == Counts(1, 1, 0)
    document = (await api.client.get(f"{JOBS}/{made.key.id}")).json()
    assert (document["name"], document["retry_of"]) == ("Summer", job_id)


async def test_repeated_retry_returns_the_same_job(api: Api) -> None:
    job_id = await job_with_failures(api)
    first, *others = await asyncio.gather(*(retry(api, job_id) for _ in range(3)))
    assert [each["job_id"] for each in others] == [first["job_id"]] * 2
    await run(api, first["job_id"])
    assert (await retry(api, job_id))["job_id"] == first["job_id"]
    assert api.rows("jobs") == 2


async def test_retry_of_a_cancelled_job_has_the_images_that_did_not_start(api: Api) -> None:
    job_id = await create(api, RED, BLUE, GREEN)
    key = JobKey(PUBLIC_TENANT, job_id)
    await api.services.backend.jobs.change(key, jobs.start())
    await api.succeed(sha256(RED))
    await api.services.backend.jobs.complete_item(key, 0, None, timedelta(0))
    await api.client.delete(f"{JOBS}/{job_id}")
    again = await retry(api, job_id)
    hashes = [item.image_hash for item in await items(api, again["job_id"])]
    assert hashes == [sha256(BLUE), sha256(GREEN)]
    # A worker was classifying an image when the job was cancelled.
    await api.services.backend.jobs.complete_item(key, 1, None, timedelta(0))
    assert (await retry(api, job_id))["job_id"] == again["job_id"]


async def test_job_without_anything_to_retry_is_a_conflict(api: Api) -> None:
    running = await create(api, RED)
    assert "has not ended" in (await retry(api, running, 409))["detail"]
    await run(api, running)
    assert "No image" in (await retry(api, running, 409))["detail"]
    broken = await create(api, b"bad")
    await run(api, broken)
    assert "No image" in (await retry(api, broken, 409))["detail"]
    assert api.rows("jobs") == 2


async def test_results_of_one_status(api: Api) -> None:
    job_id = await job_with_failures(api)
    path = f"{JOBS}/{job_id}/results"
    for status, positions in (("failed", [1, 2]), ("succeeded", [0]), ("", [0, 1, 2])):
        found = (await api.client.get(path, params={"status": status})).json()["results"]
        assert [each["index"] for each in found] == positions
        lines = await api.client.get(
            path, params={"status": status}, headers={"Accept": "application/x-ndjson"}
        )
        assert [json.loads(line)["index"] for line in lines.text.splitlines()] == positions
    page = (await api.client.get(path, params={"status": "failed", "limit": 1})).json()
    following = {"status": "failed", "limit": 1, "cursor": page["next_cursor"]}
    found = (await api.client.get(path, params=following)).json()["results"]
    assert [each["index"] for each in found] == [2]
    response = await api.client.get(path, params={"status": "open"})
    assert_problem(response, 422, "invalid_request")
