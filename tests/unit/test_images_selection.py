"""`model`, `labels` and `min_confidence`: what a request selects, on every route with a result."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.services import Services
from core.bundles.bundle import read_bundle
from core.clock import utc_now
from core.domain.records import (
    MAX_LABELS,
    PUBLIC_TENANT,
    Annotation,
    RecordKey,
    Status,
    complete,
    new_record,
)
from tests.support.api import LEASE, NOTHING, Api, Traces, api_settings, open_api
from tests.support.bundles import write_colour_bundle
from tests.support.pictures import picture, sha256
from tests.support.problems import assert_problem
from tests.support.records import claimed

V1 = "/api/v1/images"
IMAGE = picture()
HASH = sha256(IMAGE)
ITEM, STATUS = f"{V1}/{HASH}", f"/what/status/{HASH}"
# The confidences 0.2, 0.1, 0.05, ... of twenty labels.
LABELS = [Annotation(n, f"label {n}", 0.4 / 2**n) for n in range(1, MAX_LABELS + 1)]
CATEGORIES = [Annotation(1, "wide", 0.9), Annotation(2, "narrow", 0.3)]
FORM: dict[str, Any] = {"files": {"img": ("cat.jpg", IMAGE)}}
UPLOADS: dict[str, dict[str, Any]] = {
    V1: {"content": IMAGE},
    "/what/fast": FORM,
    "/what/slow": FORM,
    f"{ITEM}/classify": {},
}
READS = [ITEM, STATUS]


@pytest.fixture
def other_bundle(tmp_path: Path) -> Path:
    return write_colour_bundle(tmp_path / "other", name="other", sharpness=1.0)


@pytest.fixture
async def api(
    tmp_path: Path, colour_bundle: Path, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Api]:
    monkeypatch.setattr("app.images.what_routes.SLOW_WAIT_SECONDS", 0.05)
    settings = api_settings(tmp_path, colour_bundle, extra_model_uris=(str(other_bundle),))
    async with open_api(settings) as api:
        yield api


async def succeed(api: Api, model: str = "", labels: list[Annotation] = LABELS) -> None:
    """Store twenty labels for the image, as a worker does."""
    key = RecordKey(PUBLIC_TENANT, HASH, model or api.services.model)
    await api.records.create(new_record(key, utc_now()))
    claim = await claimed(api.records, key, LEASE)
    assert claim is not None
    assert await api.records.change(key, complete(claim, labels, categories=CATEGORIES))


async def known(api: Api) -> None:
    assert (await api.client.post(V1, content=IMAGE)).status_code == 202
    await api.finish_submissions()
    await succeed(api)


async def request(api: Api, path: str, query: str) -> httpx.Response:
    """Upload the image to `path`, or read it there."""
    if path in UPLOADS:
        return await api.client.post(f"{path}?{query}", **UPLOADS[path])
    return await api.client.get(f"{path}?{query}")


# --- Views ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "labels", "categories"),
    [
        ("", 5, 2),
        ("labels=1", 1, 2),
        ("labels=20", 20, 2),
        ("labels=07", 7, 2),
        ("min_confidence=0.05", 3, 2),
        ("min_confidence=0.5", 0, 1),
        ("min_confidence=1", 0, 0),
        ("min_confidence=1e-1", 2, 2),
        ("labels=20&min_confidence=0.025", 4, 2),
        ("labels=2&min_confidence=.025", 2, 2),
    ],
)
@pytest.mark.parametrize("path", [*UPLOADS, *READS])
async def test_view_selects_labels_and_categories(
    api: Api, path: str, query: str, labels: int, categories: int
) -> None:
    await known(api)
    for _ in range(2):  # the second from the cache, if there is one
        response = await request(api, path, query)
        assert response.status_code == 200
        body = response.json()
        assert body["annotations"] == [
            {"index": each.index, "label": each.label, "confidence": each.confidence}
            for each in LABELS[:labels]
        ]
        assert len(body["categories"]) == categories
    assert api.traces() == Traces(1, 1, 1)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        *((f"labels={value}", "labels") for value in ("0", "21", "-1", "1.5", "x", "", "1e1", "٣")),
        *(
            (f"min_confidence={value}", "min_confidence")
            for value in (
                "2",
                "-0.1",
                "nan",
                "NaN",
                "inf",
                "1e999",
                "",
                "0,5",
                "0x1",
                "1_0",
                " 0.5",
            )
        ),
        ("labels=3&labels=3", "labels"),
        ("min_confidence=0&min_confidence=0", "min_confidence"),
        ("model=colours&model=colours", "model"),
    ],
)
async def test_bad_value_is_refused_and_changes_nothing(api: Api, query: str, field: str) -> None:
    for path in (*UPLOADS, *READS, f"{ITEM}/stream"):
        response = await request(api, path, query)
        assert assert_problem(response, 422, "invalid_request")["field"] == field, path
        assert api.traces() == NOTHING, path


async def test_entity_tag_depends_on_the_view(api: Api) -> None:
    """P8."""
    await known(api)
    tags = {}
    # First another view, which the cache must not keep for the default one.
    for query in ("labels=3", "", "labels=5", "min_confidence=0.05", "labels=3&min_confidence=0"):
        response = await api.client.get(f"{ITEM}?{query}")
        assert response.headers["cache-control"] == "public, max-age=3600, immutable"
        tags[query] = response.headers["etag"]
        again = await api.client.get(f"{ITEM}?{query}", headers={"If-None-Match": tags[query]})
        assert again.status_code == 304
    assert tags["labels=5"] == tags[""]
    assert tags["min_confidence=0.05"] == tags["labels=3"] == tags["labels=3&min_confidence=0"]
    assert tags["labels=3"] != tags[""]


async def test_defaults_are_settings(tmp_path: Path, colour_bundle: Path) -> None:
    settings = api_settings(tmp_path, colour_bundle, labels_per_image=2, min_confidence=0.15)
    async with open_api(settings) as api:
        await known(api)
        for query, labels in (("", 1), ("min_confidence=0", 2), ("labels=20&min_confidence=0", 20)):
            body = (await api.client.get(f"{ITEM}?{query}")).json()
            assert len(body["annotations"]) == labels


async def test_result_stored_with_five_labels_stays_readable(api: Api) -> None:
    await api.client.post(V1, content=IMAGE)
    await succeed(api, labels=LABELS[:5])
    assert len((await api.client.get(f"{ITEM}?labels=20")).json()["annotations"]) == 5


async def test_location_keeps_the_view(api: Api) -> None:
    query = "?labels=3&min_confidence=0.25"
    response = await api.client.post(V1 + query, content=IMAGE)
    model = api.services.model
    location = f"{ITEM}?model={model}&labels=3&min_confidence=0.25"
    assert response.headers["location"] == location
    response = await api.client.post("/what/fast" + query, **FORM)
    assert response.headers["location"] == location.replace(ITEM, STATUS)
    response = await api.client.get(location)
    assert (response.status_code, response.headers["location"]) == (202, location)
    await succeed(api)
    assert (await api.client.get(location)).json()["annotations"] == []
    response = await api.client.get(location.replace("0.25", "0.1"))
    assert len(response.json()["annotations"]) == 2


async def test_streams_of_one_image_have_different_views(api: Api) -> None:
    await known(api)
    for query, labels in (("", 5), ("labels=2", 2), ("min_confidence=0.05", 3)):
        text = (await api.client.get(f"{ITEM}/stream?{query}")).text
        (data,) = (line[6:] for line in text.splitlines() if line.startswith("data: "))
        assert len(json.loads(data)["annotations"]) == labels


async def test_cache_answers_the_default_view_without_the_store(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await known(api)
    first = await api.client.get(ITEM)
    monkeypatch.setattr(type(api.records), "get", None)  # any use fails
    for query in ("", "labels=5", "model=colours", f"model={api.services.model}"):
        assert (await api.client.get(f"{ITEM}?{query}")).content == first.content
    assert (await api.client.post(V1, content=IMAGE)).content == first.content


# --- Models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["name", "id"])
@pytest.mark.parametrize("path", [V1, "/what/fast", "/what/slow"])
async def test_upload_is_classified_by_the_named_model(
    api: Api, other_bundle: Path, path: str, by: str
) -> None:
    id_ = read_bundle(other_bundle).identity
    model = id_ if by == "id" else "other"
    response = await api.client.post(f"{path}?model={model}", **UPLOADS[path])
    assert response.status_code == 202
    assert response.json()["model"] == id_
    assert response.headers["location"].endswith(f"?model={id_}")
    assert [each["model"] for each in api.messages()] == [id_]
    await succeed(api, id_)
    response = await api.client.get(response.headers["location"])
    assert (response.status_code, response.json()["model"]) == (200, id_)


@pytest.mark.parametrize("model", ["nobody", "nobody@0123456789ab", "../x", "%00", "a" * 5000])
async def test_unknown_model_is_refused_with_the_known_ones(
    api: Api, other_bundle: Path, model: str
) -> None:
    known_models = [api.services.model, read_bundle(other_bundle).identity]
    for path, body in UPLOADS.items():
        response = await api.client.post(f"{path}?model={model}", **body)
        problem = assert_problem(response, 422, "unknown_model")
        assert (problem["field"], problem["known"]) == ("model", known_models)
    assert api.traces() == NOTHING
    await known(api)
    for path in (*READS, f"{ITEM}/stream"):
        response = await api.client.get(f"{path}?model={model}")
        assert assert_problem(response, 422, "unknown_model")["known"] == known_models


async def test_known_image_is_classified_by_another_model_without_its_bytes(
    api: Api, other_bundle: Path
) -> None:
    await known(api)
    id_ = read_bundle(other_bundle).identity
    assert (await api.client.get(f"{ITEM}?model=other")).status_code == 404
    for _ in range(2):
        response = await api.client.post(f"{ITEM}/classify?model=other")
        assert (response.status_code, response.json()["model"]) == (202, id_)
        assert response.headers["location"] == f"{ITEM}?model={id_}"
        await api.finish_submissions()
    assert api.traces() == Traces(records=2, blobs=1, messages=2)
    await succeed(api, id_)
    for _ in range(2):
        response = await api.client.post(f"{ITEM}/classify?model=other")
        assert (response.status_code, response.json()["model"]) == (200, id_)
    assert api.traces() == Traces(records=2, blobs=1, messages=2)


async def test_image_without_bytes_is_not_classified(api: Api) -> None:
    response = await api.client.post(f"{ITEM}/classify")
    assert_problem(response, 404, "not_found")
    assert api.traces() == NOTHING
    await known(api)
    await api.services.backend.blobs.delete(f"public/{HASH}")
    assert (await api.client.post(f"{ITEM}/classify?labels=2")).status_code == 200
    assert_problem(await api.client.post(f"{ITEM}/classify?model=other"), 404, "not_found")


async def test_job_relabels_known_images_under_another_model(api: Api, other_bundle: Path) -> None:
    await known(api)
    id_ = read_bundle(other_bundle).identity
    for n, request in enumerate(
        (
            {"params": {"model": "other"}, "json": {"image_hashes": [HASH]}},
            {"json": {"image_hashes": [HASH], "model": id_}},
        ),
        start=1,
    ):
        response = await api.client.post("/api/v1/jobs/batch-predict", **request)  # type: ignore[arg-type]
        assert response.status_code == 202
        job = (await api.client.get(response.headers["location"])).json()
        assert job["model"] == id_
        assert api.traces() == Traces(records=2, blobs=1, messages=1 + n)
        assert (await api.records.get(RecordKey(PUBLIC_TENANT, HASH, id_))) is not None


async def test_job_by_an_unknown_model_is_refused_before_it_is_read(api: Api) -> None:
    path = "/api/v1/jobs/batch-predict"
    response = await api.client.post(f"{path}?model=nobody", files={"imgs": ("a.png", IMAGE)})
    assert_problem(response, 422, "unknown_model")
    assert api.traces() == NOTHING
    for request in (
        {"json": {"image_hashes": [HASH], "model": "nobody"}},
        {"json": {"image_hashes": [HASH], "model": "x" * 3000}},
    ):
        assert_problem(await api.client.post(path, **request), 422, "unknown_model")  # type: ignore[arg-type]
    twice = {"params": {"model": "other"}, "json": {"image_hashes": [HASH], "model": "other"}}
    problem = assert_problem(await api.client.post(path, **twice), 422, "invalid_request")  # type: ignore[arg-type]
    assert problem["field"] == "model"


async def test_idempotency_key_with_another_model_is_refused(api: Api) -> None:
    await known(api)
    for model, status in (("", 202), ("other", 422), ("", 202)):
        response = await api.client.post(
            "/api/v1/jobs/batch-predict",
            params={"model": model} if model else {},
            json={"image_hashes": [HASH]},
            headers={"Idempotency-Key": "same"},
        )
        assert response.status_code == status


# --- Rollouts -------------------------------------------------------------------------------------


async def test_result_of_another_revision_is_found(
    tmp_path: Path, colour_bundle: Path, other_bundle: Path
) -> None:
    """P2, P8: two revisions of the API with different defaults share the stores."""
    async with (
        open_api(api_settings(tmp_path, other_bundle)) as old,
        open_api(api_settings(tmp_path, colour_bundle)) as new,
    ):
        location = (await old.client.post(V1, content=IMAGE)).headers["location"]
        await old.finish_submissions()
        for path in (location, ITEM, STATUS):
            response = await new.client.get(path)
            assert (response.status_code, response.json()["model"]) == (202, old.services.model)
        await succeed(old, old.services.model)
        for path in (ITEM, STATUS):
            response = await new.client.get(path)
            assert (response.status_code, response.json()["model"]) == (200, old.services.model)
            # The image may get a result of the new default.
            assert response.headers["cache-control"] == "no-store"
            assert "etag" not in response.headers
        for api in (old, new):
            response = await api.client.get(location)
            assert response.headers["cache-control"] == "public, max-age=3600, immutable"
            assert response.json()["model"] == old.services.model
        text = (await new.client.get(f"{ITEM}/stream")).text
        assert old.services.model in text
        # The new default is another record.
        assert (await new.client.post(f"{ITEM}/classify")).status_code == 202
        await new.finish_submissions()
        assert (await new.client.get(ITEM)).json()["model"] == new.services.model
        assert (await old.client.get(ITEM)).json()["model"] == old.services.model
        assert new.traces() == Traces(records=2, blobs=1, messages=2)


async def test_newest_success_is_preferred(api: Api, other_bundle: Path) -> None:
    ids = ["first@0123456789ab", "second@0123456789ab", "third@0123456789ab"]
    await succeed(api, ids[1])
    await succeed(api, ids[0])
    await api.records.create(new_record(RecordKey(PUBLIC_TENANT, HASH, ids[2]), utc_now()))
    body = (await api.client.get(ITEM)).json()
    assert (body["model"], body["status"]) == (ids[0], Status.SUCCESS)


async def test_audit_names_the_model_of_the_result(
    api: Api, other_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await api.client.post(f"{V1}?model=other", content=IMAGE)
    await audit_written(api.services)
    assert f"model={read_bundle(other_bundle).identity} status=" in capsys.readouterr().out


async def audit_written(services: Services) -> None:
    await services.audit.close()
    services.audit.start()
