"""The client against faults at the socket: nothing lost, nothing twice, errors by code."""

import asyncio
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from glimpse_client import (
    AsyncGlimpse,
    ConnectionFailed,
    Glimpse,
    GlimpseError,
    RetryPolicy,
    WaitTimeout,
)
from glimpse_client.errors import (
    ApiError,
    BadRequest,
    Conflict,
    Forbidden,
    InvalidImage,
    NotFound,
    RateLimited,
    ServiceUnavailable,
    Unauthenticated,
)
from glimpse_client.jobs import Options

from tests.support.scripted_service import Drop, Reply, ScriptedService, Step

AT_ONCE = RetryPolicy(retries=3, backoff=0.0)
HASH = "0" * 64
DONE = {
    "image_hash": HASH,
    "status": "success",
    "model": "m@000000000000",
    "annotations": [{"index": 1, "label": "tabby cat", "confidence": 0.9}],
    "error": None,
    "a_member_of_tomorrow": {"x": 1},
}
PENDING = {**DONE, "status": "pending", "annotations": []}
KEY = {
    "id": "k1",
    "name": "n",
    "tenant": "public",
    "scopes": ["read"],
    "active": True,
    "key": "glp_x",
}


def get(*script: Step, retries: RetryPolicy = AT_ONCE) -> tuple[Any, ScriptedService]:
    with ScriptedService(*script) as service, Glimpse(service.url, retries=retries) as client:
        return client.images.get(HASH), service


def problem(status: int, code: str = "x", **headers: str) -> Reply:
    return Reply(status, {"code": code, "detail": "Because.", "title": "T"}, headers)


@pytest.mark.parametrize(
    "fault",
    [
        Drop(),
        Reply(200, DONE, cut=10),
        Reply(200, body=b'{"image_hash": '),
        problem(500),
        problem(502),
        problem(503, **{"retry-after": "0"}),
        problem(429, **{"retry-after": "0"}),
        problem(408),
        Reply(502, body=b"<html>Bad gateway</html>", headers={"content-type": "text/html"}),
    ],
    ids=["dropped", "cut off", "half JSON", "500", "502", "503", "429", "408", "a proxy's page"],
)
def test_a_fault_is_retried(fault: Step) -> None:
    image, service = get(fault, Reply(200, DONE))
    assert image.label == "tabby cat"
    assert len(service.seen) == 2


async def test_asynchronous_client_retries() -> None:
    with ScriptedService(Drop(), problem(503), Reply(200, DONE)) as service:
        async with AsyncGlimpse(service.url, retries=AT_ONCE) as client:
            assert (await client.images.get(HASH)).label == "tabby cat"
        assert len(service.seen) == 3


@pytest.mark.parametrize("part", ["images", "jobs", "models", "keys", "webhooks", "dead_letters"])
def test_asynchronous_client_has_the_same_methods(part: str) -> None:
    def methods(client: Any) -> dict[str, list[str]]:
        of = getattr(client, part)
        names = [name for name in dir(of) if not name.startswith("_")]
        return {name: list(inspect.signature(getattr(of, name)).parameters) for name in names}

    with Glimpse("http://127.0.0.1:9") as client:
        assert methods(client) == methods(AsyncGlimpse("http://127.0.0.1:9"))


def test_retries_end() -> None:
    with ScriptedService(Drop()) as service, Glimpse(service.url, retries=AT_ONCE) as client:
        with pytest.raises(ConnectionFailed, match=f"GET /api/v1/images/{HASH}"):
            client.images.get(HASH)
        assert len(service.seen) == 4
    with ScriptedService(problem(503)) as service, Glimpse(service.url, retries=AT_ONCE) as client:
        with pytest.raises(ServiceUnavailable):
            client.images.get(HASH)
        assert len(service.seen) == 4


def test_a_retry_after_beyond_the_cap_is_raised_at_once() -> None:
    with ScriptedService(problem(429, "rate_limited", **{"retry-after": "3600"})) as service:
        with Glimpse(service.url) as client, pytest.raises(RateLimited) as refused:
            client.images.get(HASH)
        assert refused.value.retry_after == 3600
        assert len(service.seen) == 1


@pytest.mark.parametrize("fault", [Drop(), problem(500), Reply(201, KEY, cut=5)])
def test_a_key_is_never_made_twice(fault: Step) -> None:
    """The service may have made it: only the caller can find that out."""
    with ScriptedService(fault, Reply(201, KEY)) as service:
        with Glimpse(service.url, retries=AT_ONCE) as client, pytest.raises(GlimpseError):
            client.keys.create("n")
        assert len(service.seen) == 1


def test_refused_request_is_repeated() -> None:
    script = (problem(503, **{"retry-after": "0"}), Reply(201, KEY))
    with ScriptedService(*script) as service, Glimpse(service.url, retries=AT_ONCE) as client:
        assert client.keys.create("n").text == "glp_x"
        assert len(service.seen) == 2


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "unauthenticated", Unauthenticated),
        (403, "forbidden", Forbidden),
        (404, "not_found", NotFound),
        (409, "conflict", Conflict),
        (422, "invalid_image", InvalidImage),
        (404, "a_code_of_tomorrow", NotFound),
        (418, "", BadRequest),
    ],
)
def test_errors_have_a_class_by_code(status: int, code: str, kind: type[ApiError]) -> None:
    with pytest.raises(kind) as refused:
        get(problem(status, code))
    assert (refused.value.status, refused.value.code) == (status, code)
    assert refused.value.detail == "Because."


def test_an_upload_is_sent_whole_with_each_attempt(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"bytes of a photo" * 1000)
    script = (problem(404, "not_found"), Drop(), problem(503), Reply(200, DONE))
    with ScriptedService(*script) as service, Glimpse(service.url, retries=AT_ONCE) as client:
        image = client.images.classify(photo)
    assert image.uploaded
    uploads = [each for each in service.seen if each.method == "POST"]
    assert [each.body for each in uploads] == [photo.read_bytes()] * 3


def test_a_known_image_is_not_uploaded() -> None:
    with ScriptedService(Reply(200, DONE)) as service, Glimpse(service.url) as client:
        image = client.images.classify(b"bytes")
    assert (image.label, image.uploaded) == ("tabby cat", False)
    assert [each.method for each in service.seen] == ["GET"]


def test_result_is_polled_if_the_stream_is_none() -> None:
    # A proxy sends a page of its own, or breaks off before the first event.
    page = Reply(200, body=b"<html>", headers={"content-type": "text/html"})
    broken = Reply(200, body=b"id: 1", headers={"content-type": "text/event-stream"}, cut=2)
    for streams in ([page], [broken] * 4):
        script = (problem(404, "not_found"), Reply(202, PENDING), *streams, Reply(200, DONE))
        with ScriptedService(*script) as service, Glimpse(service.url, retries=AT_ONCE) as client:
            assert client.images.classify(b"bytes").label == "tabby cat"
        assert len(service.seen) == len(script)


@pytest.mark.parametrize("url", ["https://example.com/a.jpg", "HTTP://example.com/a", "data:,x"])
def test_service_fetches_an_image_at_a_url(url: str) -> None:
    script = (Reply(202, PENDING), Reply(204), Reply(200, DONE))
    with ScriptedService(*script) as service, Glimpse(service.url) as client:
        assert client.images.classify(url, model="m", labels=1).label == "tabby cat"
    first = service.seen[0]
    assert (first.method, first.path) == ("POST", "/api/v1/images/from-url?model=m&labels=1")
    assert json.loads(first.body) == {"url": url}
    assert first.headers["prefer"] == "wait=30"


def test_view_is_requested_at_every_step() -> None:
    script = (problem(404, "not_found"), Reply(202, PENDING), problem(503), Reply(200, DONE))
    with ScriptedService(*script) as service, Glimpse(service.url, retries=AT_ONCE) as client:
        client.images.classify(b"bytes", labels=3, min_confidence=0.5)
    view = "labels=3&min_confidence=0.5"
    paths = [each.path for each in service.seen if "/stream" not in each.path]
    assert all(view in path for path in paths), paths
    assert len(paths) == 3
    assert "model=m" in paths[-1], "the model of the upload, which may not be the default any more"


def test_named_model_classifies_a_stored_image_without_its_bytes() -> None:
    with ScriptedService(Reply(200, DONE)) as service, Glimpse(service.url) as client:
        image = client.images.classify(b"bytes", model="m", labels=3)
    (seen,) = service.seen
    assert (seen.method, image.uploaded) == ("POST", False)
    assert seen.path.endswith("/classify?model=m&labels=3")


def test_named_model_of_an_unknown_image_is_named_in_the_upload() -> None:
    script = (problem(404, "not_found"), Reply(200, DONE))
    with ScriptedService(*script) as service, Glimpse(service.url) as client:
        assert client.images.classify(b"bytes", model="m").uploaded
    assert service.seen[1].path == "/api/v1/images?model=m"
    assert service.seen[1].body == b"bytes"


def test_views_of_results_and_images_are_requested() -> None:
    page: dict[str, Any] = {
        "job_id": "j",
        "status": "completed",
        "results": [],
        "next_cursor": None,
    }
    script = (Reply(200, page), Reply(200, DONE))
    with ScriptedService(*script) as service, Glimpse(service.url) as client:
        assert list(client.jobs.results("j", labels=2, min_confidence=0.25)) == []
        client.images.get("a" * 64, model="m", labels=1)
    assert service.seen[0].path.startswith("/api/v1/jobs/j/results?labels=2&min_confidence=0.25&")
    assert service.seen[1].path.endswith("?model=m&labels=1")


def test_all_pages_of_the_images_are_listed_with_their_filters() -> None:
    first = {"images": [DONE], "next_cursor": "c2"}
    script = (Reply(200, first), Reply(200, {"images": [PENDING], "next_cursor": None}))
    with ScriptedService(*script) as service, Glimpse(service.url) as client:
        found = list(client.images.list(label="tabby cat", min_confidence=0.5, status=None))
    assert [each.status for each in found] == ["success", "pending"]
    assert [step.path for step in service.seen] == [
        "/api/v1/images?label=tabby+cat&min_confidence=0.5",
        "/api/v1/images?label=tabby+cat&min_confidence=0.5&cursor=c2",
    ]


def test_thumbnail_is_asked_for_until_it_is_made() -> None:
    webp = Reply(200, body=b"RIFF", headers={"content-type": "image/webp"})
    later = Reply(202, body=b"", headers={"content-type": "text/plain"})
    with ScriptedService(later, webp) as service, Glimpse(service.url) as client:
        assert client.images.thumbnail(HASH) == b"RIFF"
    assert [step.path for step in service.seen] == [f"/api/v1/images/{HASH}/thumbnail"] * 2
    with (
        ScriptedService(later) as service,
        Glimpse(service.url) as client,
        pytest.raises(WaitTimeout),
    ):
        client.images.thumbnail(HASH, wait=0)


def test_job_is_named_and_retried() -> None:
    accepted = {"job_id": "j2", "status": "pending"}
    script = (Reply(202, accepted), Reply(202, accepted))
    with ScriptedService(*script) as service, Glimpse(service.url) as client:
        client.jobs.create(hashes=[HASH], options=Options(name="Été 2026"))
        assert client.jobs.retry("j1").id == "j2"
    made, retried = service.seen
    assert made.path == "/api/v1/jobs/batch-predict?name=%C3%89t%C3%A9+2026"
    assert (retried.method, retried.path) == ("POST", "/api/v1/jobs/j1/retry")


def test_model_of_a_job_is_looked_up_and_requested() -> None:
    accepted = {"job_id": "j", "status": "pending"}
    script = (Reply(200, {"known": {}, "missing": []}), Reply(202, accepted))
    with ScriptedService(*script) as service, Glimpse(service.url) as client:
        client.jobs.create([b"bytes"], options=Options(model="m"))
    assert json.loads(service.seen[0].body)["model"] == "m"
    assert service.seen[1].path == "/api/v1/jobs/batch-predict?model=m"


def test_timeout_of_a_wait_reports_the_last_status() -> None:
    script = (problem(404, "not_found"), Reply(202, PENDING))
    with ScriptedService(*script) as service:
        client = Glimpse(service.url, retries=RetryPolicy(retries=0))
        with client, pytest.raises(WaitTimeout) as over:
            client.images.classify(b"bytes", wait=0.01)
    assert over.value.pending.status == "pending"


def test_without_a_wait_the_state_is_returned() -> None:
    script = (problem(404, "not_found"), Reply(202, PENDING))
    with ScriptedService(*script) as service, Glimpse(service.url) as client:
        assert client.images.classify(b"bytes", wait=0).status == "pending"
    assert "prefer" not in service.seen[1].headers


def test_the_key_is_sent_as_a_bearer_token() -> None:
    with ScriptedService(Reply(200, DONE)) as service:
        with Glimpse(service.url, api_key="glp_secret") as client:
            client.images.get(HASH)
        assert service.seen[0].headers["authorization"] == "Bearer glp_secret"


def test_a_job_has_one_idempotency_key_across_attempts(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"one")
    (tmp_path / "b.jpg").write_bytes(b"two")
    (tmp_path / "again.jpg").write_bytes(b"one")
    lookup = {"known": {}, "missing": [SHA_ONE]}
    accepted = Reply(202, {"job_id": "j1", "status": "pending"})
    script = (Reply(200, lookup), Drop(), problem(503), accepted)
    with ScriptedService(*script) as service, Glimpse(service.url, retries=AT_ONCE) as client:
        batch = client.jobs.create(tmp_path)
    assert batch.ids == ("j1",)
    assert batch.names[SHA_ONE] == ("a.jpg", "again.jpg")
    attempts = service.seen[1:]
    assert len({each.headers["idempotency-key"] for each in attempts}) == 1
    body = attempts[-1].body
    assert body.count(b'name="imgs"') == 1, "the same bytes are sent once, known ones not at all"
    assert SHA_TWO.encode() in body


SHA_ONE = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
SHA_TWO = "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"


def test_a_stream_that_breaks_off_is_continued(tmp_path: Path) -> None:
    first = b'id: 1\nevent: update\ndata: {"job_id": "j", "status": "running"}\n\n'
    last = b'id: 2\nevent: complete\ndata: {"job_id": "j", "status": "completed"}\n\n'
    kind = {"content-type": "text/event-stream"}
    script = (
        Reply(200, body=b"retry: 0\n" + first, headers=kind),
        Drop(),
        Reply(200, body=last, headers=kind),
    )
    with ScriptedService(*script) as service, Glimpse(service.url, retries=AT_ONCE) as client:
        states = [job.status for job in client.jobs.watch("j")]
    assert states == ["running", "completed"]
    assert [each.headers.get("last-event-id") for each in service.seen] == [None, "1", "1"]


async def test_concurrent_flows_end_with_the_first_error() -> None:
    with ScriptedService(problem(401, "unauthenticated")) as service:
        async with AsyncGlimpse(service.url, retries=AT_ONCE) as client:
            with pytest.raises(Unauthenticated):
                await asyncio.gather(*(client.images.get(HASH) for _ in range(3)))
