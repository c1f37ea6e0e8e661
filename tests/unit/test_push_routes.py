"""Push routes: which envelopes they refuse, and what they log (P7)."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from starlette.requests import ClientDisconnect

from core.domain.jobs import new_job_id
from core.domain.messages import ClassifyImage, RunJob
from core.domain.records import RecordKey
from core.observability.logs import add_trace
from tests.support.problems import assert_problem
from tests.support.worker import (
    UNKNOWN_MODEL,
    RunningWorker,
    body,
    running_worker,
    settings_in,
)

HASH = "ab" * 32


@pytest.fixture
async def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningWorker]:
    monkeypatch.setattr("worker.tasks.classify_image.DUPLICATE_WAIT_SECONDS", 0.3)
    async with running_worker(settings_in(tmp_path)) as running:
        yield running


async def test_log_lines_carry_the_image_hash_and_the_trace(
    worker: RunningWorker,
) -> None:
    key = await worker.submit()
    trace = "0af7651916cd43dd8448eb211c80319c"
    message = ClassifyImage(key, f"00-{trace}-b7ad6b7169203331-01")
    processors = [structlog.contextvars.merge_contextvars, add_trace]
    with structlog.testing.capture_logs(processors=processors) as lines:
        await worker.push(key, attributes=message.attributes())
        await worker.push(RecordKey("public", HASH, worker.model))
    classified = [line for line in lines if line["event"] == "classified"]
    assert [line["label"] for line in classified] == ["red"]
    assert classified[0]["attempt"] == 1
    assert classified[0]["milliseconds"] > 0
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["image_hash"] for line in requests] == [key.image_hash, HASH]
    assert {line["image_hash"] for line in lines} == {key.image_hash, HASH}
    assert {line["trace"] for line in lines if line["image_hash"] == key.image_hash} == {trace}


def envelope_with(**changes: object) -> bytes:
    attributes = {"image_hash": HASH, "model": UNKNOWN_MODEL, "tenant": "public"}
    document: dict[str, Any] = {
        "subscription": "s",
        "message": {"messageId": "1", "attributes": attributes, "data": ""},
    }
    for name, value in changes.items():
        part, _, inner = name.partition("__")
        if not inner:
            document[part] = value
        elif inner in attributes:
            attributes[inner] = value  # type: ignore[assignment]  # deliberately wrong types
        else:
            document["message"][inner] = value
    return json.dumps(document).encode()


MALFORMED = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "null": b"null",
    "a list": b"[]",
    "a number": b"17",
    "deep": b"[" * 100_000,
    "no message": json.dumps({"subscription": "s"}).encode(),
    "no subscription": json.dumps({"message": {"messageId": "1"}}).encode(),
    "message is text": envelope_with(message="hello"),
    "no attributes": envelope_with(message={"messageId": "1"}),
    "attributes are a list": envelope_with(message={"messageId": "1", "attributes": []}),
    "no message id": envelope_with(message__messageId=""),
    "attempt is text": envelope_with(deliveryAttempt="often"),
    "data is no base64": envelope_with(message__data="%%%"),
    "data is not ASCII": envelope_with(message__data="é"),
    "data is a number": envelope_with(message__data=1),
    "short hash": envelope_with(message__image_hash="ab"),
    "upper-case hash": envelope_with(message__image_hash="AB" * 32),
    "hash with a newline": envelope_with(message__image_hash=HASH + "\n"),
    "hash is a path": envelope_with(message__image_hash="../" * 21 + "a"),
    "hash is null": envelope_with(message__image_hash=None),
    "hash is a number": envelope_with(message__image_hash=1),
    "tenant is a path": envelope_with(message__tenant=".."),
    "tenant is empty": envelope_with(message__tenant=""),
    "model without digest": envelope_with(message__model="colours"),
    "model is a URL": envelope_with(message__model="https://example.com/model@0123456789ab"),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_envelope_is_refused_and_changes_nothing(
    worker: RunningWorker, body: bytes
) -> None:
    answer = await worker.client.post("/generate_annotations", content=body)
    assert_problem(answer, 400, "malformed_envelope")
    long_from_now = worker.context.clock() + timedelta(days=1)
    assert await worker.backend.records.stale(long_from_now, 10) == []
    # As a dead letter it is acknowledged: the queue would repeat it forever.
    answer = await worker.client.post("/generate_annotations_dlq", content=body)
    assert answer.status_code == 204


async def test_message_of_another_kind_is_refused_by_the_jobs_route(worker: RunningWorker) -> None:
    key = RecordKey("public", HASH, worker.model)
    for attributes in (ClassifyImage(key).attributes(), {"kind": "run_job", "tenant": "public"}):
        answer = await worker.client.post("/jobs", content=body(attributes=attributes))
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_envelope")


@pytest.mark.parametrize("chunked", [False, True])
async def test_large_body_is_refused_before_it_is_read(
    worker: RunningWorker, chunked: bool
) -> None:
    taken = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b" " * 100_000

    headers = {} if chunked else {"content-length": "100000000"}
    answer = await worker.client.post("/generate_annotations", content=chunks(), headers=headers)
    assert_problem(answer, 413, "envelope_too_large")
    assert taken <= 102
    answer = await worker.client.post(
        "/generate_annotations_dlq", content=chunks(), headers=headers
    )
    assert answer.status_code == 204


async def test_get_of_a_push_route_is_405(worker: RunningWorker) -> None:
    assert_problem(await worker.client.get("/generate_annotations"), 405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/generate_annotations", "/generate_annotations_dlq"])
async def test_interrupted_push_is_499(worker: RunningWorker, path: str) -> None:
    async def interrupted() -> AsyncIterator[bytes]:
        yield b'{"message": {'
        raise ClientDisconnect

    assert (await worker.client.post(path, content=interrupted())).status_code == 499


@pytest.mark.parametrize(
    ("path", "call"),
    [("/jobs", "jobs.start"), ("/generate_annotations_dlq", "jobs.get")],
)
async def test_cancelled_push_is_503(worker: RunningWorker, path: str, call: str) -> None:
    """The server cancels a request only when it shuts down."""
    called = asyncio.Event()

    async def hold(name: str, after: bool) -> None:
        if name == call:
            called.set()
            await asyncio.Event().wait()

    message = RunJob("public", new_job_id())
    with worker.watching(hold):
        content = body(attributes=message.attributes())
        pushing = asyncio.create_task(worker.client.post(path, content=content))
        await called.wait()
        pushing.cancel()
        assert_problem(await pushing, 503, "unavailable")
