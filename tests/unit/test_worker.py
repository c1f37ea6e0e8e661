"""The worker's service through HTTP, on a real embedded backend."""

import asyncio
import dataclasses
import json
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
from starlette.requests import ClientDisconnect

from core.bundles.bundle import read_bundle
from core.domain.messages import ClassifyImage
from core.domain.records import Annotation, Claim, RecordKey, Status, complete, release, retry
from core.observability.logs import add_trace
from core.ports import BlobStore
from tests.support.bundles import write_colour_bundle, write_slow_bundle
from tests.support.classifiers import held_classifiers
from tests.support.clock import MovableClock
from tests.support.faults import Once, watched
from tests.support.pictures import picture
from tests.support.problems import assert_problem
from tests.support.records import claimed
from tests.support.scripted_worker import until
from tests.support.worker import (
    UNKNOWN_MODEL,
    RunningWorker,
    running_worker,
    settings_in,
)

HASH = "ab" * 32
WHITE = picture(7, (250, 250, 250))
MINUTE = timedelta(minutes=1)


@pytest.fixture
async def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningWorker]:
    monkeypatch.setattr("worker.tasks.classify_image.DUPLICATE_WAIT_SECONDS", 0.3)
    async with running_worker(settings_in(tmp_path)) as running:
        yield running


@pytest.fixture
async def slow_worker(tmp_path: Path) -> AsyncIterator[RunningWorker]:
    """A white picture keeps it busy for about a third of a second."""
    uri = str(write_slow_bundle(tmp_path / "slow", rounds=300))
    async with running_worker(settings_in(tmp_path, model_uri=uri)) as running:
        yield running


async def running(worker: RunningWorker, key: RecordKey) -> bool:
    return (await worker.record(key)).status is Status.RUNNING


# --- The way of one image ------------------------------------------------------------------------


async def test_a_pushed_image_ends_with_its_labels(worker: RunningWorker) -> None:
    key = await worker.submit(picture(1, (20, 20, 220)))
    answer = await worker.push(key)
    assert (answer.status_code, answer.content) == (204, b"")
    record = await worker.record(key)
    assert record.status is Status.SUCCESS
    assert record.attempts == 1
    assert [note.index for note in record.annotations] == [1, 2, 3, 4, 5]
    assert record.annotations[0].label == "blue"
    confidences = [note.confidence for note in record.annotations]
    assert confidences == sorted(confidences, reverse=True)
    assert 0.9 < confidences[0] <= 1


async def test_a_finished_image_is_acknowledged_and_left_alone(worker: RunningWorker) -> None:
    key = await worker.submit()
    await worker.push(key)
    before = await worker.record(key)
    assert (await worker.push(key)).status_code == 204
    assert await worker.record(key) == before


async def test_every_line_about_an_image_carries_its_hash_and_its_trace(
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


# --- Duplicates and leases (P2) ------------------------------------------------------------------


async def test_concurrent_deliveries_end_in_one_inference(slow_worker: RunningWorker) -> None:
    key = await slow_worker.submit(WHITE)
    answers = await asyncio.gather(*(slow_worker.push(key) for _ in range(8)))
    assert [answer.status_code for answer in answers] == [204] * 8
    record = await slow_worker.record(key)
    assert (record.status, record.attempts) == (Status.SUCCESS, 1)


async def test_a_delivery_waits_for_the_owner_s_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.tasks.classify_image.DUPLICATE_WAIT_SECONDS", 60)
    async with running_worker(settings_in(tmp_path)) as worker:
        key = await worker.submit()
        claim = await claimed(worker.backend.records, key, MINUTE)
        assert claim is not None
        pushing = asyncio.create_task(worker.push(key))
        await asyncio.sleep(0.1)
        assert not pushing.done()
        assert await worker.backend.records.change(
            claim.key, complete(claim, [Annotation(1, "by hand", 1.0)])
        )
        assert (await pushing).status_code == 204
        assert (await worker.record(key)).annotations[0].label == "by hand"


async def test_a_delivery_takes_over_what_the_owner_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.tasks.classify_image.DUPLICATE_WAIT_SECONDS", 60)
    async with running_worker(settings_in(tmp_path)) as worker:
        key = await worker.submit()
        claim = await claimed(worker.backend.records, key, MINUTE)
        assert claim is not None
        pushing = asyncio.create_task(worker.push(key))
        await asyncio.sleep(0.1)
        assert await worker.backend.records.change(claim.key, release(claim))
        assert (await pushing).status_code == 204
        assert (await worker.record(key)).attempts == 2


async def test_a_delivery_is_refused_while_the_owner_takes_too_long(worker: RunningWorker) -> None:
    key = await worker.submit()
    assert await claimed(worker.backend.records, key, MINUTE) is not None
    answer = await worker.push(key)
    assert_problem(answer, 503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    record = await worker.record(key)
    assert (record.status, record.attempts) == (Status.RUNNING, 1)


async def test_an_expired_lease_passes_to_the_next_worker(worker: RunningWorker) -> None:
    key = await worker.submit()
    dead = await claimed(worker.backend.records, key, timedelta(microseconds=1))
    assert dead is not None
    assert (await worker.push(key)).status_code == 204
    record = await worker.record(key)
    assert (record.status, record.attempts) == (Status.SUCCESS, 2)
    assert not await worker.backend.records.change(
        dead.key, complete(dead, [Annotation(1, "too late", 1.0)])
    )
    assert await worker.record(key) == record


@pytest.mark.parametrize("finished", [True, False])
async def test_a_worker_that_lost_its_lease_changes_nothing(tmp_path: Path, finished: bool) -> None:
    """Its inference outlasts the lease, and another takes the record before it can store."""
    clock = MovableClock()
    async with running_worker(settings_in(tmp_path), clock) as worker:
        key = await worker.submit()
        thieves: list[Claim] = []

        async def steal() -> None:
            clock.move(worker.context.settings.lease_seconds)
            thief = await claimed(worker.backend.records, key, MINUTE)
            assert thief is not None
            thieves.append(thief)
            if finished:
                assert await worker.backend.records.change(
                    thief.key, complete(thief, [Annotation(1, "stolen", 1.0)])
                )

        with worker.watching(Once("records.complete", 1, steal)):
            answer = await worker.push(key)
        (thief,) = thieves
        record = await worker.record(key)
        if finished:
            assert answer.status_code == 204
            assert record.annotations[0].label == "stolen"
        else:
            assert_problem(answer, 503, "unavailable")
            assert record.token == thief.token
            assert record.leased(clock())


async def test_a_cancelled_delivery_gives_its_claim_up(worker: RunningWorker) -> None:
    key = await worker.submit()
    with held_classifiers():
        pushing = asyncio.create_task(worker.push(key))
        await until(lambda: running(worker, key))
        pushing.cancel()
        assert_problem(await pushing, 503, "unavailable")
        assert not (await worker.record(key)).leased(worker.context.clock())
    assert (await worker.push(key)).status_code == 204
    assert (await worker.record(key)).status is Status.SUCCESS


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_cancellation_during_the_claim_releases_the_record(
    worker: RunningWorker, moment: str
) -> None:
    """The store grants the claim to a delivery that no longer exists."""
    key = await worker.submit()
    claiming, proceed = asyncio.Event(), asyncio.Event()

    async def hold(name: str, after: bool) -> None:
        if name == "records.claim" and after == (moment == "after"):
            claiming.set()
            await proceed.wait()

    with worker.watching(hold):
        pushing = asyncio.create_task(worker.push(key))
        await claiming.wait()
        pushing.cancel()
        await asyncio.sleep(0)
        proceed.set()
        assert_problem(await pushing, 503, "unavailable")
    record = await worker.record(key)
    assert (record.status, record.attempts) == (Status.RUNNING, 1)
    assert not record.leased(worker.context.clock())


async def test_a_second_cancellation_does_not_interrupt_the_release(
    worker: RunningWorker,
) -> None:
    key = await worker.submit()
    releasing, proceed = asyncio.Event(), asyncio.Event()

    async def hold(name: str, after: bool) -> None:
        if name == "records.release" and not after:
            releasing.set()
            await proceed.wait()

    with worker.watching(hold), held_classifiers():
        pushing = asyncio.create_task(worker.push(key))
        await until(lambda: running(worker, key))
        pushing.cancel()
        await releasing.wait()
        pushing.cancel()
        await asyncio.sleep(0)
        draining = asyncio.create_task(worker.context.claims.wait_until_released())
        await asyncio.wait((draining,), timeout=0.05)
        assert not draining.done(), "shutdown waits for the release"
        proceed.set()
        assert_problem(await pushing, 503, "unavailable")
        await draining
    assert not (await worker.record(key)).leased(worker.context.clock())


# --- Slots ---------------------------------------------------------------------------------------


class RemoteBlobs:
    """A blob store whose blobs are not files, so that the worker itself reads them."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def file(self, name: str) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)


async def test_a_queued_delivery_neither_claims_nor_reads_its_image(
    worker: RunningWorker,
) -> None:
    """A lease must not expire, nor an image fill the memory, during a wait of unknown length."""
    calls: list[str] = []

    async def note(name: str, after: bool) -> None:
        if not after:
            calls.append(name)

    blobs = cast(BlobStore, RemoteBlobs(worker.backend.blobs))
    remote = dataclasses.replace(worker.backend, blobs=blobs)
    key = await worker.submit()
    with worker.using(watched(remote, note)):
        async with worker.no_free_slot():
            pushing = asyncio.create_task(worker.push(key))
            await until(worker.queued)
            await asyncio.sleep(0.05)
            assert calls == []
            record = await worker.record(key)
            assert (record.status, record.token) == (Status.PENDING, 0)
        assert (await pushing).status_code == 204
    assert set(calls) == {"records.claim", "blobs.get", "records.complete"}


async def test_a_delivery_that_waits_for_another_worker_occupies_no_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.tasks.classify_image.DUPLICATE_WAIT_SECONDS", 60)
    async with running_worker(settings_in(tmp_path)) as worker:
        key = await worker.submit()
        claim = await claimed(worker.backend.records, key, MINUTE)
        assert claim is not None
        waiting = [asyncio.create_task(worker.push(key)) for _ in range(20)]
        async with asyncio.timeout(30):
            assert await worker.labelled(WHITE) == "white"
        assert not any(task.done() for task in waiting)
        assert await worker.backend.records.change(
            claim.key, complete(claim, [Annotation(1, "by hand", 1.0)])
        )
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {204}


# --- Faults of the image: recorded and acknowledged ----------------------------------------------


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (picture(1, size=(400, 300))[:2000], "undecodable_image"),
        (picture(1, format_="PNG")[:1000], "undecodable_image"),
        (b"not a picture", "undecodable_image"),
        (b"", "undecodable_image"),
        (picture(1, size=(101, 100), format_="PNG"), "invalid_image"),
    ],
    ids=["truncated JPEG", "truncated PNG", "text", "empty", "too many pixels"],
)
async def test_a_bad_image_ends_as_an_error_that_no_retry_would_mend(
    tmp_path: Path, data: bytes, code: str
) -> None:
    limit = 10_000 if code == "invalid_image" else 1_000_000
    async with running_worker(settings_in(tmp_path, max_image_pixels=limit)) as worker:
        key = await worker.submit(data)
        assert (await worker.push(key)).status_code == 204
        record = await worker.record(key)
        assert record.status is Status.ERROR
        assert record.error is not None
        assert (record.error.code, record.error.retryable) == (code, False)
        assert record.annotations == ()


async def test_a_missing_image_ends_as_an_error_that_a_new_upload_mends(
    worker: RunningWorker,
) -> None:
    key = await worker.submit()
    await worker.backend.blobs.delete(key.blob_name)
    assert (await worker.push(key)).status_code == 204
    record = await worker.record(key)
    assert record.error is not None
    assert (record.error.code, record.error.retryable) == ("image_missing", True)


@pytest.mark.parametrize("left", [WHITE[:-100], picture(1)], ids=["truncated", "another picture"])
async def test_a_damaged_image_ends_as_an_error_that_a_new_upload_mends(
    left: bytes, worker: RunningWorker
) -> None:
    """Neither the labels of what is there are the image's, nor is its fault (P8)."""
    key = await worker.submit(WHITE)
    file = worker.backend.blobs.file(key.blob_name)
    assert file is not None
    file.write_bytes(left)
    assert (await worker.push(key)).status_code == 204
    record = await worker.record(key)
    assert record.error is not None
    assert (record.error.code, record.error.retryable) == ("image_missing", True)
    await worker.backend.blobs.put(key.blob_name, WHITE, "image/jpeg")
    assert await worker.backend.records.change(key, retry())
    assert (await worker.push(key)).status_code == 204
    assert (await worker.record(key)).status is Status.SUCCESS


# --- Messages that make no sense (P7) ------------------------------------------------------------


def _with(**changes: object) -> bytes:
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
            attributes[inner] = value  # type: ignore[assignment]  # wrong types are the point
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
    "message is text": _with(message="hello"),
    "no attributes": _with(message={"messageId": "1"}),
    "attributes are a list": _with(message={"messageId": "1", "attributes": []}),
    "no message id": _with(message__messageId=""),
    "attempt is text": _with(deliveryAttempt="often"),
    "data is no base64": _with(message__data="%%%"),
    "data is not ASCII": _with(message__data="é"),
    "data is a number": _with(message__data=1),
    "short hash": _with(message__image_hash="ab"),
    "upper-case hash": _with(message__image_hash="AB" * 32),
    "hash with a newline": _with(message__image_hash=HASH + "\n"),
    "hash is a path": _with(message__image_hash="../" * 21 + "a"),
    "hash is null": _with(message__image_hash=None),
    "hash is a number": _with(message__image_hash=1),
    "tenant is a path": _with(message__tenant=".."),
    "tenant is empty": _with(message__tenant=""),
    "model without digest": _with(message__model="colours"),
    "model is a URL": _with(message__model="https://example.com/model@0123456789ab"),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_envelope_is_refused_and_changes_nothing(
    worker: RunningWorker, body: bytes
) -> None:
    answer = await worker.client.post("/generate_annotations", content=body)
    assert_problem(answer, 400, "malformed_envelope")
    long_from_now = worker.context.clock() + timedelta(days=1)
    assert await worker.backend.records.stale(long_from_now, 10) == []
    # The same as a dead letter is acknowledged, or it would come back for ever.
    answer = await worker.client.post("/generate_annotations_dlq", content=body)
    assert answer.status_code == 204


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_huge_body_is_refused_before_it_is_read(
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


async def test_an_unknown_image_is_not_found_and_not_created(worker: RunningWorker) -> None:
    key = RecordKey("public", HASH, worker.model)
    assert_problem(await worker.push(key), 404, "not_found")
    assert await worker.backend.records.get(key) is None


async def test_another_tenant_s_image_is_not_found(worker: RunningWorker) -> None:
    key = await worker.submit()
    other = RecordKey("somebody", key.image_hash, key.model)
    assert_problem(await worker.push(other), 404, "not_found")
    assert (await worker.record(key)).status is Status.PENDING


async def test_a_get_where_a_push_belongs_is_refused(worker: RunningWorker) -> None:
    assert_problem(await worker.client.get("/generate_annotations"), 405, "method_not_allowed")


# --- Parts that do not answer: nothing is lost ---------------------------------------------------


async def test_a_failing_blob_store_leaves_the_image_to_the_next_delivery(
    worker: RunningWorker,
) -> None:
    key = await worker.submit()
    blobs = worker.context.settings.data_dir / "blobs"
    aside = blobs.rename(blobs.with_name("aside"))
    blobs.write_bytes(b"no folder any more")
    answer = await worker.push(key)
    assert_problem(answer, 503, "unavailable")
    assert "retry-after" in answer.headers
    record = await worker.record(key)
    assert record.status is Status.RUNNING
    assert not record.leased(worker.context.clock())
    not_ready = await worker.client.get("/ready")
    assert not_ready.status_code == 503
    assert not_ready.json()["checks"]["blobs"] != "ok"
    blobs.unlink()
    aside.rename(blobs)
    assert (await worker.push(key)).status_code == 204
    assert (await worker.record(key)).status is Status.SUCCESS


async def test_a_closed_record_store_is_answered_with_503(tmp_path: Path) -> None:
    app_settings = settings_in(tmp_path)
    async with running_worker(app_settings) as worker:
        key = await worker.submit()
        await worker.backend.records._database.close()  # type: ignore[attr-defined]  # the fault
        assert_problem(await worker.push(key), 503, "unavailable")
        assert_problem(await worker.dead_letter(key), 503, "unavailable")
        assert_problem(await worker.client.post("/reconcile"), 503, "unavailable")
        assert (await worker.client.get("/ready")).json()["checks"]["records"] != "ok"
    async with running_worker(app_settings) as worker:
        assert (await worker.record(key)).status is Status.PENDING
        assert (await worker.push(key)).status_code == 204


# --- Models --------------------------------------------------------------------------------------


async def test_two_models_answer_side_by_side(tmp_path: Path) -> None:
    other = write_colour_bundle(tmp_path / "other", name="other", sharpness=2.0)
    async with running_worker(
        settings_in(tmp_path, extra_model_uris=(str(other),), loaded_models=1)
    ) as worker:
        keys = [
            await worker.submit(picture(seed), model=model)
            for seed in range(3)
            for model in (worker.model, read_bundle(other).identity)
        ]
        answers = await asyncio.gather(*(worker.push(key) for key in keys))
        assert [answer.status_code for answer in answers] == [204] * 6
        sure, unsure = [(await worker.record(key)).annotations[0] for key in keys[:2]]
        assert (sure.label, unsure.label) == ("red", "red")
        assert sure.confidence > unsure.confidence


async def test_a_model_that_is_not_here_is_left_to_another_revision(worker: RunningWorker) -> None:
    key = await worker.submit(model=UNKNOWN_MODEL)
    answer = await worker.push(key)
    assert_problem(answer, 503, "model_unavailable")
    record = await worker.record(key)
    assert (record.status, record.attempts) == (Status.PENDING, 0)
    assert_problem(await worker.push(RecordKey("public", HASH, UNKNOWN_MODEL)), 404, "not_found")


async def test_a_finished_image_is_acknowledged_without_its_model(worker: RunningWorker) -> None:
    key = await worker.submit(model=UNKNOWN_MODEL)
    claim = await claimed(worker.backend.records, key, MINUTE)
    assert claim is not None
    await worker.backend.records.change(claim.key, complete(claim, [Annotation(1, "red", 1.0)]))
    assert (await worker.push(key)).status_code == 204


@pytest.mark.parametrize("fault", ["absent", "altered"])
async def test_a_bad_bundle_starts_and_is_not_ready(tmp_path: Path, fault: str) -> None:
    settings = settings_in(tmp_path)
    bundle = Path(settings.model_uri)
    model = read_bundle(bundle).identity
    if fault == "absent":
        shutil.rmtree(bundle)
    else:
        (bundle / "labels.txt").write_text("a\nb\nc\nd\ne\nf\n")
    async with running_worker(settings) as worker:
        assert (await worker.client.get("/health")).status_code == 204
        answer = await worker.client.get("/ready")
        assert answer.status_code == 503
        checks = answer.json()["checks"]
        assert {name for name, outcome in checks.items() if outcome != "ok"} == {"model"}
        key = await worker.submit(model=model)
        assert_problem(await worker.push(key), 503, "model_unavailable")
        assert (await worker.record(key)).attempts == 0


async def test_a_good_worker_is_ready(worker: RunningWorker) -> None:
    answer = await worker.client.get("/ready")
    assert answer.status_code == 200
    assert set(answer.json()["checks"]) == {"records", "blobs", "queue", "model"}


# --- The event loop (P6) -------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/generate_annotations", "/generate_annotations_dlq"])
async def test_a_push_that_breaks_off_is_no_fault_of_ours(worker: RunningWorker, path: str) -> None:
    async def interrupted() -> AsyncIterator[bytes]:
        yield b'{"message": {'
        raise ClientDisconnect

    assert (await worker.client.post(path, content=interrupted())).status_code == 499
