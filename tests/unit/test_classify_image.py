"""Classification of one image through the push route, on an embedded backend (P2, P4)."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from core.bundles.bundle import read_bundle
from core.domain.records import (
    Annotation,
    Claim,
    RecordError,
    RecordKey,
    Status,
    complete,
    new_record,
    release,
    retry,
)
from core.errors import Unavailable
from core.ports import BlobStore
from tests.support.bundles import write_colour_bundle, write_slow_bundle
from tests.support.clock import MovableClock, turns
from tests.support.faults import Once, watched
from tests.support.loop_errors import loop_errors
from tests.support.pictures import picture
from tests.support.predictors import predicting, write_python_bundle
from tests.support.problems import assert_problem
from tests.support.records import claimed, delete_image
from tests.support.scripted_worker import until
from tests.support.worker import (
    UNKNOWN_MODEL,
    RunningWorker,
    running_worker,
    settings_in,
)
from worker.context import MAX_LOSSES, lost_classifiers
from worker.tasks.classify_image import count_loss

WHITE = picture(7, (250, 250, 250))
MINUTE = timedelta(minutes=1)
HASH = "ab" * 32


@pytest.fixture
async def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningWorker]:
    monkeypatch.setattr("worker.tasks.classify_image.DUPLICATE_WAIT_SECONDS", 0.3)
    async with running_worker(settings_in(tmp_path)) as running:
        yield running


@pytest.fixture
async def slow_worker(tmp_path: Path) -> AsyncIterator[RunningWorker]:
    """A white picture takes it about a third of a second."""
    uri = str(write_slow_bundle(tmp_path / "slow", rounds=300))
    async with running_worker(settings_in(tmp_path, model_uri=uri)) as running:
        yield running


async def test_pushed_image_is_classified(worker: RunningWorker) -> None:
    key = await worker.submit(picture(1, (20, 20, 220)))
    answer = await worker.push(key)
    assert (answer.status_code, answer.content) == (204, b"")
    record = await worker.record(key)
    assert record.status is Status.SUCCESS
    assert record.attempts == 1
    assert [note.index for note in record.annotations] == [1, 2, 3, 4, 5, 6]
    assert record.annotations[0].label == "blue"
    confidences = [note.confidence for note in record.annotations]
    assert confidences == sorted(confidences, reverse=True)
    assert 0.9 < confidences[0] <= 1


async def test_finished_image_is_acknowledged_and_unchanged(worker: RunningWorker) -> None:
    key = await worker.submit()
    await worker.push(key)
    before = await worker.record(key)
    assert (await worker.push(key)).status_code == 204
    assert await worker.record(key) == before


# --- Duplicates and leases (P2) -------------------------------------------------------------------


async def test_concurrent_deliveries_cause_one_inference(slow_worker: RunningWorker) -> None:
    key = await slow_worker.submit(WHITE)
    answers = await asyncio.gather(*(slow_worker.push(key) for _ in range(8)))
    assert [answer.status_code for answer in answers] == [204] * 8
    record = await slow_worker.record(key)
    assert (record.status, record.attempts) == (Status.SUCCESS, 1)


async def waiting_delivery(worker: RunningWorker, key: RecordKey) -> "asyncio.Task[httpx.Response]":
    """A delivery that has found more than once that another worker owns the record."""
    looked = 0

    async def count(call: str, after: bool) -> None:
        nonlocal looked
        looked += after and call == "records.get"

    with worker.watching(count):
        pushing = asyncio.create_task(worker.push(key))
        await until(lambda: looked >= 2)
    return pushing


async def test_duplicate_waits_for_the_result_of_another_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.tasks.classify_image.DUPLICATE_WAIT_SECONDS", 60)
    async with running_worker(settings_in(tmp_path)) as worker:
        key = await worker.submit()
        claim = await claimed(worker.backend.records, key, MINUTE)
        assert claim is not None
        pushing = await waiting_delivery(worker, key)
        assert not pushing.done()
        assert await worker.backend.records.change(
            claim.key, complete(claim, [Annotation(1, "by hand", 1.0)])
        )
        assert (await pushing).status_code == 204
        assert (await worker.record(key)).annotations[0].label == "by hand"


async def test_duplicate_claims_the_record_that_another_worker_releases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.tasks.classify_image.DUPLICATE_WAIT_SECONDS", 60)
    async with running_worker(settings_in(tmp_path)) as worker:
        key = await worker.submit()
        claim = await claimed(worker.backend.records, key, MINUTE)
        assert claim is not None
        pushing = await waiting_delivery(worker, key)
        assert await worker.backend.records.change(claim.key, release(claim))
        assert (await pushing).status_code == 204
        assert (await worker.record(key)).attempts == 2


async def test_duplicate_is_refused_when_its_wait_ends(worker: RunningWorker) -> None:
    key = await worker.submit()
    assert await claimed(worker.backend.records, key, MINUTE) is not None
    answer = await worker.push(key)
    assert_problem(answer, 503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    record = await worker.record(key)
    assert (record.status, record.attempts) == (Status.RUNNING, 1)


async def test_next_delivery_claims_a_record_whose_lease_expired(worker: RunningWorker) -> None:
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
async def test_worker_that_lost_its_lease_changes_nothing(tmp_path: Path, finished: bool) -> None:
    """Its inference outlasts the lease, and another worker claims the record before the result."""
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


# --- Slots ----------------------------------------------------------------------------------------


class RemoteBlobs:
    """A blob store without files, so that the worker itself reads the blobs."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def file(self, name: str) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)


async def test_queued_delivery_neither_claims_nor_reads_its_image(
    worker: RunningWorker,
) -> None:
    """During a wait of unknown length, no lease must run and no image must occupy memory."""
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
            await turns()
            assert calls == []
            record = await worker.record(key)
            assert (record.status, record.token) == (Status.PENDING, 0)
        assert (await pushing).status_code == 204
    assert set(calls) == {
        *("records.claim", "blobs.get", "records.complete"),
        *("blobs.put", "blobs.exists"),  # of the thumbnail
    }


async def test_delivery_that_waits_for_another_worker_occupies_no_slot(
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


@asynccontextmanager
async def refused_claim(
    worker: RunningWorker, read: Callable[[], Awaitable[None]]
) -> AsyncIterator[RecordKey]:
    """An image that another worker owns; `read` runs in the read that starts with the claim."""
    reading = asyncio.Event()

    async def watch(name: str, after: bool) -> None:
        if name == "blobs.get" and not after:
            reading.set()
            await read()
        if name == "records.claim" and not after:
            await reading.wait()

    key = await worker.submit()
    assert await claimed(worker.backend.records, key, MINUTE) is not None
    blobs = cast(BlobStore, RemoteBlobs(worker.backend.blobs))
    with worker.using(watched(dataclasses.replace(worker.backend, blobs=blobs), watch)):
        yield key


async def test_read_is_cancelled_if_the_claim_is_refused(worker: RunningWorker) -> None:
    cancelled = asyncio.Event()

    async def read() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with refused_claim(worker, read) as key:
        assert_problem(await worker.push(key), 503, "unavailable")
    assert cancelled.is_set()


async def test_failed_read_is_not_reported_if_the_claim_is_refused(worker: RunningWorker) -> None:
    async def read() -> None:
        raise Unavailable("The storage does not answer.")

    with loop_errors() as errors:
        async with refused_claim(worker, read) as key:
            assert_problem(await worker.push(key), 503, "unavailable")
    assert errors == []


def test_memory_of_lost_classifiers_is_bounded() -> None:
    losses = lost_classifiers()
    for number in range(MAX_LOSSES + 10):
        count_loss(RecordKey("public", f"{number:064x}", UNKNOWN_MODEL), losses)
    assert len(losses) == MAX_LOSSES


# --- Errors of the image: recorded and acknowledged -----------------------------------------------


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
async def test_bad_image_fails_permanently(tmp_path: Path, data: bytes, code: str) -> None:
    limit = 10_000 if code == "invalid_image" else 1_000_000
    async with running_worker(settings_in(tmp_path, max_image_pixels=limit)) as worker:
        key = await worker.submit(data)
        assert (await worker.push(key)).status_code == 204
        record = await worker.record(key)
        assert record.status is Status.ERROR
        assert record.error is not None
        assert (record.error.code, record.error.retryable) == (code, False)
        assert record.annotations == ()


async def test_missing_image_fails_until_it_is_uploaded_again(
    worker: RunningWorker,
) -> None:
    key = await worker.submit()
    await worker.backend.blobs.delete(key.blob_name)
    assert (await worker.push(key)).status_code == 204
    record = await worker.record(key)
    assert record.error is not None
    assert (record.error.code, record.error.retryable) == ("image_missing", True)


@pytest.mark.parametrize("left", [WHITE[:-100], picture(1)], ids=["truncated", "another picture"])
async def test_damaged_image_fails_until_it_is_uploaded_again(
    left: bytes, worker: RunningWorker
) -> None:
    """The file has other bytes, so neither its labels nor its errors are the image's (P8)."""
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


async def test_unknown_image_is_404_and_creates_no_record(worker: RunningWorker) -> None:
    key = RecordKey("public", HASH, worker.model)
    assert_problem(await worker.push(key), 404, "not_found")
    assert await worker.backend.records.get(key) is None


async def test_message_of_a_deleted_image_is_acknowledged(worker: RunningWorker) -> None:
    key = await worker.submit()
    await delete_image(worker.backend.records, key.image)
    assert (await worker.push(key)).status_code == 204
    assert await worker.backend.records.get(key) is None
    other = RecordKey("somebody", key.image_hash, key.model)
    assert_problem(await worker.push(other), 404, "not_found")


async def test_old_message_does_not_end_a_new_upload(worker: RunningWorker) -> None:
    """It arrives after the new upload has created the record, and before the bytes are stored."""
    key = await worker.submit()
    await delete_image(worker.backend.records, key.image)
    await worker.backend.blobs.delete(key.blob_name)
    assert await worker.backend.records.create(new_record(key, worker.context.clock()))
    assert (await worker.push(key)).status_code == 204
    record = await worker.record(key)
    assert not record.status.terminal
    assert (record.claims, record.leased(worker.context.clock())) == (0, False)
    await worker.backend.blobs.put(key.blob_name, picture(), "image/jpeg")
    assert (await worker.push(key)).status_code == 204
    assert (await worker.record(key)).status is Status.SUCCESS


async def test_missing_bytes_end_the_record_as_retryable(worker: RunningWorker) -> None:
    key = await worker.submit()
    await worker.backend.blobs.delete(key.blob_name)
    assert (await worker.push(key)).status_code == 204
    error = (await worker.record(key)).error
    assert error is not None
    assert (error.code, error.retryable) == ("image_missing", True)


async def test_image_of_another_tenant_is_404(worker: RunningWorker) -> None:
    key = await worker.submit()
    other = RecordKey("somebody", key.image_hash, key.model)
    assert_problem(await worker.push(other), 404, "not_found")
    assert (await worker.record(key)).status is Status.PENDING


# --- Errors of the service: the image is left to the next delivery --------------------------------


async def test_failing_blob_store_releases_the_claim(
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


# --- Models ---------------------------------------------------------------------------------------


async def test_two_models_classify_concurrently(tmp_path: Path) -> None:
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


async def test_message_of_an_unknown_model_is_refused_without_a_claim(
    worker: RunningWorker,
) -> None:
    key = await worker.submit(model=UNKNOWN_MODEL)
    answer = await worker.push(key)
    assert_problem(answer, 503, "model_unavailable")
    record = await worker.record(key)
    assert (record.status, record.attempts) == (Status.PENDING, 0)
    assert_problem(await worker.push(RecordKey("public", HASH, UNKNOWN_MODEL)), 404, "not_found")


async def test_finished_image_is_acknowledged_without_its_model(worker: RunningWorker) -> None:
    key = await worker.submit(model=UNKNOWN_MODEL)
    claim = await claimed(worker.backend.records, key, MINUTE)
    assert claim is not None
    await worker.backend.records.change(claim.key, complete(claim, [Annotation(1, "red", 1.0)]))
    assert (await worker.push(key)).status_code == 204


# --- Bundles in Python ----------------------------------------------------------------------------


@asynccontextmanager
async def python_worker(tmp_path: Path, expression: str) -> AsyncIterator[RunningWorker]:
    folder = write_python_bundle(tmp_path / "python", predicting(expression))
    async with running_worker(settings_in(tmp_path, model_uri=str(folder))) as running:
        yield running


async def test_output_of_a_predictor_is_stored(tmp_path: Path) -> None:
    async with python_worker(tmp_path, "[{'output': {'n': 1}} for _ in images]") as worker:
        key = await worker.submit()
        assert (await worker.push(key)).status_code == 204
        record = await worker.record(key)
    assert (record.status, record.annotations) == (Status.SUCCESS, ())
    assert record.output == '{"n":1}'


@pytest.mark.parametrize(
    ("expression", "detail"),
    [
        ("images.nothing", "The predictor raised AttributeError."),
        ("[]", "The predictor returned 0 predictions for 1 images."),
    ],
)
async def test_failed_prediction_is_a_retryable_error(
    tmp_path: Path, expression: str, detail: str
) -> None:
    async with python_worker(tmp_path, expression) as worker:
        key = await worker.submit()
        assert (await worker.push(key)).status_code == 204
        record = await worker.record(key)
    assert record.status is Status.ERROR
    assert record.error == RecordError("prediction_failed", detail, True)


async def test_model_that_only_one_worker_has(tmp_path: Path) -> None:
    """P2, P8: the other worker refuses the message, and a later delivery leads to one result."""
    other = write_colour_bundle(tmp_path / "other", name="other")
    model = read_bundle(other).identity
    has = settings_in(tmp_path, extra_model_uris=(str(other),))
    async with running_worker(settings_in(tmp_path)) as without, running_worker(has) as worker:
        key = await without.submit(model=model)
        for _ in range(2):
            assert_problem(await without.push(key), 503, "model_unavailable")
        assert (await without.record(key)).attempts == 0
        assert (await worker.push(key)).status_code == 204
        done = await without.record(key)
        assert (done.status, done.key.model) == (Status.SUCCESS, model)
        assert (await without.push(key)).status_code == 204  # a duplicate
        assert await worker.record(key) == done
