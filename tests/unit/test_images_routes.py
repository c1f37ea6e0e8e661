"""The routes of images, on the real embedded backend."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.backends import Backend, open_backend
from core.clock import Clock, utc_now
from core.domain.records import ImageKey, Status, complete, new_record
from core.errors import Unavailable
from core.imaging.formats import sniff
from core.settings import Settings
from tests.support.api import LABELS, NOTHING, Api, Traces, api_settings, eventually, open_api
from tests.support.bundles import write_colour_bundle
from tests.support.faults import watched
from tests.support.logs import json_logs
from tests.support.pictures import picture, png_header, sha256
from tests.support.problems import assert_problem
from tests.support.records import claimed, delete_image

FIELDS = [
    "image_hash",
    "status",
    "model",
    "annotations",
    "categories",
    "confident",
    "output",
    "image_url",
    "error",
    "attempts",
    "created_at",
    "updated_at",
]
IMAGE = picture()
HASH = sha256(IMAGE)
STATUS = f"/what/status/{HASH}"
V1 = "/api/v1/images"
ITEM = f"{V1}/{HASH}"


@pytest.fixture
async def api(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Api]:
    monkeypatch.setattr("app.images.what_routes.SLOW_WAIT_SECONDS", 0.05)
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        yield api


def form(data: bytes = IMAGE) -> dict[str, Any]:
    return {"files": {"img": ("cat.jpg", data, "image/jpeg")}}


async def post(api: Api, route: str, data: bytes = IMAGE, **headers: str) -> httpx.Response:
    if route == PUT:
        return await api.client.put(f"{V1}/{sha256(data)}", content=data, headers=headers)
    if route == V1 + "#raw":
        return await api.client.post(V1, content=data, headers=headers)
    return await api.client.post(route, headers=headers, **form(data))


PUT = V1 + "#put"
UPLOADS = ["/what/fast", "/what/slow", V1, V1 + "#raw", PUT]


# --- Upload ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", UPLOADS)
async def test_new_image_is_stored_and_published_before_the_202(api: Api, route: str) -> None:
    """P1."""
    response = await post(api, route)
    traces = api.traces()
    assert response.status_code == 202
    assert traces == Traces(records=1, blobs=1, messages=1)
    item = f"{ITEM}?model={api.services.model}"
    assert response.headers["location"] == (item if route.startswith(V1) else STATUS)
    assert response.headers["retry-after"] == "1"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == FIELDS
    assert body["image_hash"] == HASH
    assert body["status"] in ("pending", "queued")
    assert body["model"] == api.services.model
    assert body["annotations"] == []
    assert (body["categories"], body["confident"]) == ([], None)
    assert body["image_url"] == f"{ITEM}/content"
    assert body["error"] is None
    assert body["attempts"] == 0
    assert datetime.fromisoformat(body["created_at"]).tzinfo == UTC
    assert await api.services.backend.blobs.get(f"public/{HASH}") == IMAGE
    await api.finish_submissions()
    assert (await api.record(HASH)).status is Status.QUEUED


@pytest.mark.parametrize("route", UPLOADS)
async def test_known_image_is_answered_at_once(api: Api, route: str) -> None:
    await post(api, route)
    await api.finish_submissions()
    await api.succeed(HASH)
    responses = [await post(api, route), await post(api, route)]  # the second is cached
    for response in responses:
        assert response.status_code == 200
        assert "location" not in response.headers
        assert "retry-after" not in response.headers
        assert response.headers["cache-control"] == "no-store"
        assert response.json()["annotations"] == [
            {"index": 1, "label": "red", "confidence": 0.75},
            {"index": 2, "label": "grey", "confidence": 0.25},
        ]
        assert response.json()["categories"] == [{"index": 1, "label": "colour", "confidence": 1.0}]
        assert response.json()["confident"] is True
        assert response.json()["attempts"] == 1
    assert api.traces() == Traces(1, 1, 1)


async def test_confidence_keeps_full_precision(api: Api) -> None:
    await post(api, V1)
    claim = await claimed(api.records, api.key(HASH), timedelta(seconds=30))
    assert claim is not None
    value = 0.1 + 0.2 - 1e-17
    assert await api.records.change(
        claim.key, complete(claim, [replace(LABELS[0], confidence=value)])
    )
    response = await api.client.get(ITEM)
    assert response.json()["annotations"][0]["confidence"] == value


async def test_links_begin_with_the_public_url(tmp_path: Path, colour_bundle: Path) -> None:
    settings = api_settings(tmp_path, colour_bundle, public_url="https://glimpse.example")
    async with open_api(settings) as api:
        body = (await post(api, V1)).json()
        assert body["image_url"] == f"https://glimpse.example{ITEM}/content"
        link = (await api.client.get(f"{ITEM}/content")).headers["location"]
        assert link.startswith("https://glimpse.example/local/blobs/public/")


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING])
async def test_image_in_progress_is_not_published_again(api: Api, status: Status) -> None:
    await post(api, V1)
    await api.finish_submissions()
    if status is Status.RUNNING:
        assert await claimed(api.records, api.key(HASH), timedelta(seconds=30))
    response = await post(api, V1)
    assert response.status_code == 202
    assert response.json()["status"] == status
    assert api.traces().messages == 1


async def test_pending_image_is_stored_and_published_again(api: Api) -> None:
    """P1: an upload was interrupted after it had created the record."""
    assert await api.records.create(new_record(api.key(HASH), utc_now()))
    assert api.traces() == Traces(1, 0, 0)
    assert (await post(api, V1)).status_code == 202
    assert api.traces() == Traces(1, 1, 1)


async def test_permanent_error_is_final(api: Api) -> None:
    await post(api, V1)
    await api.finish_submissions()
    await api.fail(HASH, retryable=False)
    response = await post(api, V1)
    assert response.status_code == 200
    assert response.json()["error"] == {
        "code": "undecodable_image",
        "detail": "It failed.",
        "retryable": False,
    }
    assert api.traces().messages == 1


async def test_new_upload_retries_a_retryable_error(api: Api) -> None:
    """Errors are neither cached nor final."""
    await post(api, V1)
    await api.finish_submissions()
    await api.fail(HASH, retryable=True)
    for _ in range(2):
        response = await api.client.get(ITEM)
        assert response.status_code == 200
        assert response.json()["status"] == "error"
        assert response.headers["cache-control"] == "no-store"
        assert "etag" not in response.headers
    response = await post(api, V1)
    assert response.status_code == 202
    assert response.json()["status"] == "pending"
    assert response.json()["error"] is None
    assert api.traces() == Traces(1, 1, 2)
    await api.finish_submissions()
    await api.succeed(HASH)
    assert (await api.client.get(ITEM)).json()["status"] == "success"


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
async def test_content_type_and_file_name_of_the_client_are_ignored(api: Api, format_: str) -> None:
    data = picture(format_=format_)
    files = {"img": ("../../x.exe", data, "application/x-msdownload")}
    assert (await api.client.post("/what/fast", files=files)).status_code == 202
    lie = {"content-type": "text/html"}
    assert (await api.client.post(V1, content=data, headers=lie)).status_code == 202
    link = (await api.client.get(f"{V1}/{sha256(data)}/content")).headers["location"]
    assert (await api.client.get(link)).headers["content-type"] == sniff(data)


# --- Invalid input (P7) ---------------------------------------------------------------------------

TEXT = b"This is plain text, renamed to .jpg."


@pytest.mark.parametrize("route", UPLOADS)
@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 422, "invalid_request"),
        (TEXT, 415, "unsupported_image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415, "unsupported_image"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", 415, "unsupported_image"),
        (b"\x89PNG\r\n\x1a\n" + b"garbage" * 50, 422, "invalid_image"),
        (png_header(20_000, 20_000), 422, "invalid_image"),
        (bytes(21 * 2**20), 413, "image_too_large"),
    ],
    ids=["empty", "text", "svg", "pdf", "png-garbage", "bomb", "21MiB"],
)
async def test_refused_upload_stores_nothing(
    api: Api, route: str, data: bytes, status: int, code: str
) -> None:
    assert_problem(await post(api, route, data), status, code)
    assert api.traces() == NOTHING


async def test_truncated_jpeg_is_accepted_for_the_worker_to_decide(api: Api) -> None:
    data = picture(size=(640, 480))
    response = await post(api, V1, data[: len(data) // 2])
    assert response.status_code == 202


@pytest.mark.parametrize("route", ["/what/fast", "/what/slow", V1])
async def test_form_without_the_field_is_refused_with_its_name(api: Api, route: str) -> None:
    response = await api.client.post(route, files={"image": ("cat.jpg", IMAGE)})
    assert "'img'" in assert_problem(response, 422, "invalid_request")["detail"]
    twice = [("img", ("a.jpg", IMAGE)), ("img", ("b.jpg", IMAGE))]
    response = await api.client.post(route, files=twice)
    assert "more than one" in assert_problem(response, 422, "invalid_request")["detail"]
    assert api.traces() == NOTHING


@pytest.mark.parametrize("route", ["/what/fast", "/what/slow"])
async def test_what_routes_accept_forms_only(api: Api, route: str) -> None:
    response = await api.client.post(route, content=IMAGE, headers={"content-type": "image/jpeg"})
    assert "'img'" in assert_problem(response, 422, "invalid_request")["detail"]
    assert_problem(await api.client.post(route), 422, "invalid_request")
    assert api.traces() == NOTHING


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=x"])
async def test_unparsable_form_is_malformed(api: Api, content_type: str) -> None:
    headers = {"content-type": content_type}
    response = await api.client.post(V1, content=b"--y\r\nnonsense", headers=headers)
    assert_problem(response, 400, "malformed_body")
    assert api.traces() == NOTHING


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b\\c.jpg", "\udcff\udcfe", "", "x" * 5000])
async def test_unusual_file_names_are_ignored(api: Api, name: str) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="img"; filename="'
        + name.encode("utf-8", "surrogateescape")
        + b'"\r\n\r\n'
        + IMAGE
        + b"\r\n--b--\r\n"
    )
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = await api.client.post("/what/fast", content=body, headers=headers)
    if len(name) > 4096:
        assert_problem(response, 400, "malformed_body")  # headers of parts are limited
    else:
        assert response.status_code == 202
        assert response.json()["image_hash"] == HASH
        files = [p.name for p in (api.settings.data_dir / "blobs").rglob("*") if p.is_file()]
        assert files == [HASH]


BAD_HASHES = ["abc", "g" * 64, HASH[:-1], HASH + "0", "%00" * 64, "é" * 64]


@pytest.mark.parametrize("image_hash", BAD_HASHES)
async def test_malformed_hash_is_refused(api: Api, image_hash: str) -> None:
    for method, path in (
        ("GET", f"/what/status/{image_hash}"),
        ("GET", f"{V1}/{image_hash}"),
        ("GET", f"{V1}/{image_hash}/content"),
        ("DELETE", f"{V1}/{image_hash}"),
    ):
        problem = assert_problem(await api.client.request(method, path), 422, "invalid_request")
        assert "64 hexadecimal digits" in problem["detail"]


async def test_unknown_image_is_not_found(api: Api) -> None:
    for method, path in (
        ("GET", STATUS),
        ("GET", ITEM),
        ("GET", f"{ITEM}/content"),
        ("DELETE", ITEM),
    ):
        assert_problem(await api.client.request(method, path), 404, "not_found")
    response = await api.client.patch(ITEM)
    assert_problem(response, 405, "method_not_allowed")
    assert "allow" in response.headers


async def test_hash_in_capitals_is_accepted_and_answered_in_lower_case(api: Api) -> None:
    """PowerShell's Get-FileHash prints capitals."""
    assert (await api.client.put(f"{V1}/{HASH.upper()}", content=IMAGE)).status_code == 202
    await api.finish_submissions()
    pending = await api.client.get(f"{V1}/{HASH.upper()}")
    assert pending.headers["location"].startswith(f"{ITEM}?")
    await api.succeed(HASH)
    for path in (f"/what/status/{HASH.upper()}", f"{V1}/{HASH.title()}"):
        answer = await api.client.get(path)
        assert (answer.status_code, answer.json()["image_hash"]) == (200, HASH)
    answer = await api.client.post(f"{V1}/lookup", json={"image_hashes": [HASH.upper()]})
    assert list(answer.json()["known"]) == [HASH]
    answer = await api.client.post(
        "/api/v1/jobs/batch-predict", json={"image_hashes": [HASH.upper()]}
    )
    job = answer.json()["job_id"]
    (result,) = (await api.client.get(f"/api/v1/jobs/{job}/results")).json()["results"]
    assert result["image_hash"] == HASH
    link = (await api.client.get(f"{V1}/{HASH.upper()}/content")).headers["location"]
    assert HASH in link
    assert (await api.client.delete(f"{V1}/{HASH.upper()}")).status_code == 204
    assert (await api.client.get(ITEM)).status_code == 404


async def test_put_checks_the_hash_and_stores_nothing_if_it_differs(api: Api) -> None:
    other = sha256(picture(seed=9))
    answer = await api.client.put(f"{V1}/{other}", content=IMAGE)
    problem = assert_problem(answer, 422, "hash_mismatch")
    assert problem["computed_hash"] == HASH
    assert api.traces() == NOTHING
    answer = await api.client.put(f"{V1}/cat.jpg", content=IMAGE)
    assert_problem(answer, 422, "invalid_request")
    answer = await api.client.put(ITEM, **form())
    problem = assert_problem(answer, 415, "unsupported_media_type")
    assert problem["accepted"] == ["application/octet-stream"]
    assert api.traces() == NOTHING


async def test_malformed_model_is_refused(api: Api) -> None:
    response = await api.client.get(ITEM, params={"model": "../../secret"})
    assert assert_problem(response, 422, "unknown_model")["known"] == [api.services.model]


# --- Reading --------------------------------------------------------------------------------------


async def test_status_is_202_until_the_result_is_available(api: Api) -> None:
    await post(api, "/what/fast")
    response = await api.client.get(STATUS)
    assert response.status_code == 202
    assert response.headers["location"] == STATUS
    assert response.headers["retry-after"] == "1"
    await api.finish_submissions()
    await api.succeed(HASH)
    response = await api.client.get(STATUS)
    assert response.status_code == 200
    assert response.json()["status"] == "success"
    assert response.headers["cache-control"] == "no-store"


async def test_success_is_cacheable_and_revalidated_by_304(api: Api) -> None:
    """P8."""
    await post(api, V1)
    working = await api.client.get(ITEM)
    assert working.status_code == 202
    assert working.headers["cache-control"] == "no-store"
    assert "etag" not in working.headers
    await api.finish_submissions()
    await api.succeed(HASH)
    response = await api.client.get(ITEM)
    tag = response.headers["etag"]
    assert tag.startswith('"')
    assert response.headers["cache-control"] == "public, max-age=3600, immutable"
    assert (await api.client.get(ITEM)).headers["etag"] == tag
    for header in (tag, f"W/{tag}", "*", f'"other", {tag}', f'W/"x",{tag}'):
        again = await api.client.get(ITEM, headers={"if-none-match": header})
        assert again.status_code == 304, header
        assert again.content == b""
        assert again.headers["etag"] == tag
        assert again.headers["cache-control"] == response.headers["cache-control"]
    for header in ('"other"', tag.strip('"'), ""):
        again = await api.client.get(ITEM, headers={"if-none-match": header})
        assert again.status_code == 200, header


async def test_result_of_another_process_has_the_same_representation(
    tmp_path: Path, colour_bundle: Path
) -> None:
    settings = api_settings(tmp_path, colour_bundle)
    async with open_api(settings) as one, open_api(settings) as other:
        await post(one, V1)
        await one.finish_submissions()
        await other.succeed(HASH)
        first, second = await one.client.get(ITEM), await other.client.get(ITEM)
        assert first.headers["etag"] == second.headers["etag"]
        assert first.content == second.content


async def test_cached_result_needs_no_store(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds, expected in ((60.0, 200), (0.0, 404)):
        monkeypatch.setattr("app.images.service.CACHE_SECONDS", seconds)
        async with open_api(api_settings(tmp_path / str(seconds), colour_bundle)) as api:
            await post(api, V1)
            await api.finish_submissions()
            await api.succeed(HASH)
            assert (await api.client.get(ITEM)).status_code == 200
            await delete_image(api.records, ImageKey("public", HASH))  # by another process
            assert (await api.client.get(ITEM)).status_code == expected


async def test_result_of_another_model_is_selected_by_parameter(
    tmp_path: Path, colour_bundle: Path
) -> None:
    other_bundle = write_colour_bundle(tmp_path / "other", name="other")
    async with open_api(api_settings(tmp_path, other_bundle)) as before:
        await post(before, V1)
        await before.finish_submissions()
        await before.succeed(HASH)
        model = before.services.model
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        response = await api.client.get(ITEM, params={"model": model})
        assert response.status_code == 200
        assert response.json()["model"] == model
        # The blob exists already. A new model needs a new record and a new message.
        assert (await post(api, V1)).status_code == 202
        assert api.traces() == Traces(records=2, blobs=1, messages=2)
        assert (await api.client.delete(ITEM)).status_code == 204
        assert api.traces().records == 0
        assert (await api.client.get(ITEM, params={"model": model})).status_code == 404


async def test_head_has_the_headers_of_get(api: Api) -> None:
    await post(api, V1)
    await api.finish_submissions()
    await api.succeed(HASH)
    get, head = await api.client.get(ITEM), await api.client.head(ITEM)
    assert head.status_code == 200
    assert head.headers == get.headers
    assert (await api.client.head(f"{ITEM}/content")).status_code == 307


# --- Waiting --------------------------------------------------------------------------------------


async def finish_soon(api: Api) -> None:
    """Complete the image once a client waits for it."""

    async def awaited() -> bool:
        return api.services.images.waiter.polls > 0

    await eventually(awaited)
    await api.succeed(HASH)


async def test_prefer_wait_delays_the_response_to_an_upload(api: Api) -> None:
    worker = asyncio.create_task(finish_soon(api))
    response = await post(api, V1, prefer="wait=25")
    await worker
    assert response.status_code == 200
    assert response.json()["status"] == "success"
    assert response.headers["preference-applied"] == "wait=25"


async def test_prefer_wait_delays_the_response_to_a_lookup(api: Api) -> None:
    await post(api, V1)
    worker = asyncio.create_task(finish_soon(api))
    response = await api.client.get(ITEM, headers={"prefer": 'respond-async, wait="25"; x=1'})
    await worker
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=25"
    assert "etag" in response.headers


async def test_wait_ends_after_the_requested_time(api: Api) -> None:
    response = await post(api, V1, prefer="wait=0")
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=0"
    assert "preference-applied" not in (await post(api, V1, prefer="wait=soon")).headers
    assert (await post(api, "/what/slow")).status_code == 202
    assert api.services.images.waiter.polls == 0


async def test_long_wait_is_reduced_to_the_limit(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.images.routes.MAX_WAIT_SECONDS", 0.25)
    response = await post(api, V1, prefer="wait=999")
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=0.25"


async def test_what_slow_waits_for_the_result(tmp_path: Path, colour_bundle: Path) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        worker = asyncio.create_task(finish_soon(api))
        response = await post(api, "/what/slow")
        await worker
        assert response.status_code == 200
        assert response.json()["status"] == "success"


async def test_wait_ends_when_the_image_is_deleted(api: Api) -> None:
    await post(api, V1)
    waiter = asyncio.create_task(api.client.get(ITEM, headers={"prefer": "wait=25"}))

    async def awaited() -> bool:
        return api.services.images.waiter.polls > 0

    await eventually(awaited)
    assert (await api.client.delete(ITEM)).status_code == 204
    assert_problem(await waiter, 404, "not_found")


# --- Content and deletion -------------------------------------------------------------------------


async def test_content_redirects_to_an_expiring_link(tmp_path: Path, colour_bundle: Path) -> None:
    """P5."""
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)

    def clock() -> datetime:
        return now

    async with open_api(api_settings(tmp_path, colour_bundle), clock) as api:
        await post(api, V1)
        response = await api.client.get(f"{ITEM}/content")
        assert response.status_code == 307
        assert response.headers["cache-control"] == "no-store"
        link = response.headers["location"]
        image = await api.client.get(link)
        assert image.status_code == 200
        assert image.content == IMAGE
        assert image.headers["content-type"] == "image/jpeg"
        assert image.headers["x-content-type-options"] == "nosniff"
        assert image.headers["content-security-policy"] == "default-src 'none'; sandbox"
        expected = f'inline; filename="{HASH}.jpeg"'
        assert image.headers["content-disposition"] == expected
        assert image.headers["cache-control"] == "private, max-age=900"

        path, _, query = link.partition("?")
        other = picture(seed=2)
        await post(api, V1, other)
        flipped = link[:-1] + ("0" if link[-1] != "0" else "1")
        for wrong in (
            path,
            flipped,
            link.replace("expires=", "expires=9"),
            f"/local/blobs/public/{sha256(other)}?{query}",
            f"/local/blobs/other/{HASH}?{query}",
            f"{path}?expires=soon&signature=é",
        ):
            assert_problem(await api.client.get(wrong), 403, "forbidden")
        now += timedelta(minutes=15)
        problem = assert_problem(await api.client.get(link), 403, "forbidden")
        assert "expired" in problem["detail"]


async def test_delete_removes_blob_records_and_cached_result(api: Api) -> None:
    await post(api, V1)
    await api.finish_submissions()
    await api.succeed(HASH)
    link = (await api.client.get(f"{ITEM}/content")).headers["location"]
    assert (await api.client.get(ITEM)).status_code == 200
    response = await api.client.delete(ITEM)
    assert response.status_code == 204
    assert response.content == b""
    assert replace(api.traces(), messages=0) == NOTHING
    assert_problem(await api.client.get(ITEM), 404, "not_found")
    assert_problem(await api.client.get(link), 404, "not_found")
    assert_problem(await api.client.delete(ITEM), 404, "not_found")
    assert (await post(api, V1)).status_code == 202


async def test_deletion_without_an_answer_is_completed_in_the_background(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has begun it. A new upload need not wait until the lease expires."""
    monkeypatch.setattr("core.services.image_deletion.RETRY_PAUSES", ())
    monkeypatch.setattr("core.services.image_deletion.UNCONFIRMED_PAUSES", (0,))
    failures = 0

    async def lose_answer(name: str, ended: bool) -> None:
        nonlocal failures
        if (name, ended) == ("records.begin_deletion", True):
            failures += 1
            raise Unavailable("The answer is lost.")

    @asynccontextmanager
    async def opener(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[Backend]:
        async with open_backend(settings, clock) as backend:
            yield watched(backend, lose_answer)

    async with open_api(api_settings(tmp_path, colour_bundle), opener=opener) as api:
        await post(api, V1)
        await api.finish_submissions()
        assert_problem(await api.client.delete(ITEM), 503, "unavailable")
        assert failures == 1

        async def deleted() -> bool:
            return replace(api.traces(), messages=0) == NOTHING

        await eventually(deleted)
        assert (await post(api, V1)).status_code == 202


# --- The rest -------------------------------------------------------------------------------------


async def test_the_docs_are_served(api: Api) -> None:
    docs = await api.client.get("/docs")
    assert docs.status_code == 200
    assert "swagger-ui-bundle.js" in docs.text


async def test_health_and_readiness(api: Api) -> None:
    assert (await api.client.get("/health")).status_code == 204
    response = await api.client.get("/ready")
    assert response.status_code == 200
    assert response.json()["checks"] == dict.fromkeys(("records", "blobs", "queue", "model"), "ok")


async def test_readiness_names_the_failing_check(tmp_path: Path) -> None:
    bundle = write_colour_bundle(tmp_path / "bundle")
    async with open_api(api_settings(tmp_path, bundle)) as api:
        write_colour_bundle(bundle, sharpness=3.0)
        problem = assert_problem(await api.client.get("/ready"), 503, "not_ready")
        assert problem["checks"]["records"] == "ok"
        assert "restart" in problem["checks"]["model"]
        (bundle / "model.json").unlink()
        problem = assert_problem(await api.client.get("/ready"), 503, "not_ready")
        assert problem["detail"] == "Failing: model."


# --- The log --------------------------------------------------------------------------------------


async def test_log_lines_of_a_request_have_the_image_hash(
    tmp_path: Path, colour_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = api_settings(tmp_path, colour_bundle, log_format="json")
    # Level `debug` logs successful reads as well.
    async with json_logs("api", "debug"), open_api(settings) as api:
        responses = [await post(api, "/what/fast"), await api.client.get(STATUS)]
        await api.succeed(HASH)
        # Twice, because cached results take another code path.
        responses += [await api.client.get(STATUS) for _ in range(2)]
        responses += [await post(api, V1), await api.client.get(ITEM)]
        responses += [await api.client.get(f"{ITEM}/content"), await api.client.delete(ITEM)]
        responses += [await api.client.get(STATUS), await api.client.get(f"{ITEM}/content")]
        responses += [await api.client.delete(ITEM)]
    logged = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    requests = [line for line in logged if line["message"] == "request"]
    asked = [(each.request.method, each.request.url.path, each.status_code) for each in responses]
    assert [(line["method"], line["path"], line["status"]) for line in requests] == asked
    assert [each.status_code for each in responses[-5:]] == [307, 204, 404, 404, 404]
    traces = {line["trace"] for line in requests}
    for line in logged:
        if line.get("trace") in traces:
            assert (line.get("image_hash"), line.get("tenant")) == (HASH, "public"), line
