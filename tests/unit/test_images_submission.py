"""Submissions keep P1, P2 and P6: no image is lost, submitted twice, or blocks the event loop."""

import asyncio
import os
import shutil
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import FrameType

import pytest
from starlette.types import Message

from app.images import service
from app.images.result_waiter import Wait
from app.images.selection import Selection
from app.images.submission import Submissions, SubmittedImage
from app.uploads.image_upload import Upload
from core.backends import Backend, open_backend
from core.clock import Clock, utc_now
from core.domain.deletions import Deletion
from core.domain.priority import Priority
from core.domain.records import (
    PUBLIC_TENANT,
    UPLOAD_LOST,
    Record,
    RecordError,
    RecordKey,
    Status,
    fail_unleased,
    new_record,
)
from core.domain.transitions import Transition
from core.errors import Unavailable
from core.imaging import jpeg
from core.settings import Settings
from tests.support.api import LEASE, Api, Traces, api_settings, open_api
from tests.support.clock import MovableClock, turns
from tests.support.connections import TIMEOUT
from tests.support.faults import watched
from tests.support.pictures import picture, sha256
from tests.support.problems import assert_problem
from tests.support.records import claimed
from tests.support.scripted_worker import until

HOUR = 3600.0
V1 = "/api/v1/images"
IMAGE = picture()
HASH = sha256(IMAGE)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold the write lock of the database, as a process that hangs does."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


async def until_stored(api: Api) -> None:
    await until(lambda: api.traces().blobs > 0)


async def until_submitting(api: Api, uploads: int) -> None:
    """Wait until the bodies of so many uploads are read and their images are being submitted."""
    await until(lambda: api.services.uploads.in_flight == uploads)
    await turns()


async def test_200_concurrent_uploads_of_a_new_image_are_submitted_once(api: Api) -> None:
    routes = ["/what/fast", V1]
    posts = [api.client.post(routes[i % 2], files={"img": (f"{i}.jpg", IMAGE)}) for i in range(200)]
    responses = await asyncio.gather(*posts)
    assert Counter(response.status_code for response in responses) == {202: 200}
    assert {response.json()["image_hash"] for response in responses} == {HASH}
    assert api.traces() == Traces(records=1, blobs=1, messages=1)
    await api.finish_submissions()
    assert (await api.record(HASH)).status is Status.QUEUED


async def test_processes_that_share_a_backend_create_one_record(
    tmp_path: Path, colour_bundle: Path
) -> None:
    """Each process may publish a message, but there is one record."""
    settings = api_settings(tmp_path, colour_bundle)
    async with open_api(settings) as one, open_api(settings) as other:
        responses = await asyncio.gather(
            *(each.client.post(V1, content=IMAGE) for each in (one, other) * 20)
        )
        assert {response.status_code for response in responses} == {202}
        traces = one.traces()
        assert (traces.records, traces.blobs) == (1, 1)
        assert 1 <= traces.messages <= 2


async def test_disconnect_of_one_client_does_not_cancel_the_others(api: Api) -> None:
    submissions = Submissions(api.services.backend, max_pixels=10**6)
    image = SubmittedImage(api.key(HASH), IMAGE, "image/jpeg")
    leader = asyncio.create_task(submissions.submit(image))
    followers = [asyncio.create_task(submissions.submit(image)) for _ in range(3)]
    await asyncio.sleep(0)
    leader.cancel()
    records = await asyncio.gather(*followers)
    assert leader.cancelled()
    assert {record.status for record in records} == {Status.PENDING}
    await submissions.close()
    assert api.traces() == Traces(1, 1, 1)


async def test_failed_publish_is_503_and_the_next_upload_succeeds(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record stays `pending`, so the next upload publishes it."""
    queue = api.settings.data_dir / "queue.db"
    with locked(queue), monkeypatch.context() as patch:
        patch.setattr("core.backends.embedded.database.BUSY_SECONDS", 0.1)
        response = await api.client.post(V1, content=IMAGE)
        assert_problem(response, 503, "unavailable")
        assert response.headers["retry-after"] == "1"
        assert "sqlite" not in response.text.lower()
        assert (await api.record(HASH)).status is Status.PENDING
    assert api.traces() == Traces(records=1, blobs=1, messages=0)
    assert (await api.client.post(V1, content=IMAGE)).status_code == 202
    assert api.traces() == Traces(records=1, blobs=1, messages=1)
    await api.finish_submissions()
    assert (await api.record(HASH)).status is Status.QUEUED


async def test_deletion_waits_for_an_upload_in_progress(api: Api) -> None:
    """It deletes also what an upload that joined the submission would see."""
    with locked(api.settings.data_dir / "queue.db"):
        first = asyncio.create_task(api.client.post(V1, content=IMAGE))
        await until_stored(api)
        deletion = asyncio.create_task(api.client.delete(f"{V1}/{HASH}"))
        await turns()
        assert not deletion.done()
        second = asyncio.create_task(api.client.post(V1, content=IMAGE))
        await until_submitting(api, 2)
    responses = await asyncio.gather(first, second, deletion)
    assert [response.status_code for response in responses] == [202, 202, 204]
    assert (await api.client.get(f"{V1}/{HASH}")).status_code == 404
    assert (await api.client.get(f"{V1}/{HASH}/content")).status_code == 404
    assert (await api.client.post(V1, content=IMAGE)).status_code == 202
    assert (await api.client.get(f"{V1}/{HASH}")).status_code == 202


async def test_upload_after_a_deletion_does_not_share_an_earlier_submission(
    tmp_path: Path, colour_bundle: Path
) -> None:
    """The submission is in progress while another process deletes the image."""
    settings = api_settings(tmp_path, colour_bundle)
    async with open_api(settings) as api, open_api(settings) as another:
        with locked(settings.data_dir / "queue.db"):
            before = asyncio.create_task(api.client.post(V1, content=IMAGE))
            await until_stored(api)
            assert (await another.client.delete(f"{V1}/{HASH}")).status_code == 204
            after = asyncio.create_task(api.client.post(V1, content=IMAGE))
            await until_submitting(api, 2)
        responses = await asyncio.gather(before, after)
        assert [response.status_code for response in responses] == [202, 202]
        assert (await api.client.get(f"{V1}/{HASH}")).status_code == 202
        assert (await api.client.get(f"{V1}/{HASH}/content")).status_code == 307


async def test_upload_after_a_deletion_by_another_process_is_submitted_again(
    tmp_path: Path, colour_bundle: Path
) -> None:
    settings = api_settings(tmp_path, colour_bundle)
    async with open_api(settings) as api, open_api(settings) as another:
        for _ in range(20):
            assert (await api.client.post(V1, content=IMAGE)).status_code == 202
            assert (await another.client.delete(f"{V1}/{HASH}")).status_code == 204
            assert (await api.client.post(V1, content=IMAGE)).status_code == 202
            assert (await api.client.get(f"{V1}/{HASH}")).status_code == 202
            assert (await another.client.delete(f"{V1}/{HASH}")).status_code == 204


@pytest.fixture
async def not_advancing(api: Api, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """Records stay `pending`, so later uploads could share the submission."""
    over = asyncio.Event()
    change = api.services.backend.records.change

    async def change_unless_advance(key: RecordKey, step: Transition[Record]) -> Record | None:
        if step.name == "advance":
            await over.wait()
        return await change(key, step)

    monkeypatch.setattr(api.services.backend.records, "change", change_unless_advance)
    yield api
    over.set()


async def test_upload_after_a_partial_deletion_stores_its_bytes(
    not_advancing: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next upload completes the deletion of a process that has died."""

    async def fail(deletion: Deletion) -> bool:
        raise Unavailable("the database is locked")

    assert (await not_advancing.client.post(V1, content=IMAGE)).status_code == 202
    with monkeypatch.context() as patch:
        patch.setattr(not_advancing.services.backend.records, "end_deletion", fail)
        assert (await not_advancing.client.delete(f"{V1}/{HASH}")).status_code == 503
    assert not_advancing.traces().blobs == 0
    monkeypatch.setattr("core.services.image_deletion.WAIT_SECONDS", 0.05)
    assert (await not_advancing.client.post(V1, content=IMAGE)).status_code == 503
    monkeypatch.setattr(Deletion, "leased", lambda self, now: False)
    assert (await not_advancing.client.post(V1, content=IMAGE)).status_code == 202
    assert not_advancing.traces().blobs == 1


async def test_upload_after_a_retryable_error_is_submitted_again(not_advancing: Api) -> None:
    assert (await not_advancing.client.post(V1, content=IMAGE)).status_code == 202
    assert await not_advancing.services.backend.records.change(
        not_advancing.key(HASH), fail_unleased(RecordError("overloaded", "Try again.", True))
    )
    assert (await not_advancing.client.post(V1, content=IMAGE)).status_code == 202
    assert (await not_advancing.record(HASH)).status is Status.PENDING
    assert not_advancing.traces().messages == 2


async def test_upload_stores_its_bytes_when_another_process_replaced_the_record(
    not_advancing: Api,
) -> None:
    """P1. The other process has deleted the image and created it again, but not stored it yet."""
    assert (await not_advancing.client.post(V1, content=IMAGE)).status_code == 202
    async with open_api(not_advancing.settings) as another:
        assert (await another.client.delete(f"{V1}/{HASH}")).status_code == 204
    assert await not_advancing.records.create(new_record(not_advancing.key(HASH), utc_now()))
    assert not_advancing.traces().blobs == 0
    assert (await not_advancing.client.post(V1, content=IMAGE)).status_code == 202
    assert not_advancing.traces() == Traces(records=1, blobs=1, messages=2)


class HangingPort:
    """The embedded backend with a port call that hangs until `answers` is set."""

    def __init__(self, call: str = "blobs.put") -> None:
        self._call = call
        self.asked, self.answers = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def open_backend(self, settings: Settings, clock: Clock) -> AsyncIterator[Backend]:
        async with open_backend(settings, clock) as backend:
            yield watched(backend, self._before)

    async def _before(self, call: str, after: bool) -> None:
        if call == self._call and not after:
            self.asked.set()
            await self.answers.wait()


async def test_closing_waits_for_uploads_whose_clients_have_left(
    tmp_path: Path, colour_bundle: Path
) -> None:
    """P1, P4: without the message, only the reconciler would find the image, minutes later."""
    storage = HangingPort()
    settings = api_settings(tmp_path, colour_bundle)
    async with open_api(settings, opener=storage.open_backend) as api:
        upload = asyncio.create_task(api.client.post(V1, content=IMAGE))
        await storage.asked.wait()
        upload.cancel()
        await asyncio.wait({upload})
        asyncio.get_running_loop().call_later(0.05, storage.answers.set)
    assert api.traces() == Traces(records=1, blobs=1, messages=1)
    with closing(sqlite3.connect(api.settings.data_dir / "records.db")) as records:
        assert records.execute("SELECT status FROM records").fetchall() == [("queued",)]


async def test_closing_gives_up_on_a_hanging_upload(
    tmp_path: Path,
    colour_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(service, "CLOSE_SECONDS", 0.01)
    storage = HangingPort()
    settings = api_settings(tmp_path, colour_bundle)
    async with open_api(settings, opener=storage.open_backend) as api:
        upload = asyncio.create_task(api.client.post(V1, content=IMAGE))
        await storage.asked.wait()
    assert not upload.done()
    assert "uploads not finished at shutdown" in capsys.readouterr().out
    storage.answers.set()
    assert_problem(await upload, 503, "unavailable")


async def test_failed_put_is_503_and_publishes_nothing(api: Api) -> None:
    blobs = api.settings.data_dir / "blobs"
    shutil.rmtree(blobs)
    blobs.write_text("a file where the folder should be")
    response = await api.client.post("/what/fast", files={"img": ("a.jpg", IMAGE)})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    blobs.unlink()
    blobs.mkdir()
    assert api.traces() == Traces(records=1, blobs=0, messages=0)
    assert (await api.client.post(V1, content=IMAGE)).status_code == 202
    assert api.traces() == Traces(1, 1, 1)


async def test_callers_that_share_a_failed_submission_all_get_its_error(api: Api) -> None:
    blobs = api.settings.data_dir / "blobs"
    shutil.rmtree(blobs)
    blobs.touch()
    responses = await asyncio.gather(*(api.client.post(V1, content=IMAGE) for _ in range(5)))
    assert {response.status_code for response in responses} == {503}
    blobs.unlink()
    blobs.mkdir()
    assert (await api.client.post(V1, content=IMAGE)).status_code == 202


async def test_closed_backend_is_unavailable(tmp_path: Path, colour_bundle: Path) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        images = api.services.images
    with pytest.raises(Unavailable):
        await images.find(PUBLIC_TENANT, HASH, Selection("", images.default_view))


async def test_headers_are_inspected_and_blobs_written_in_threads(
    tmp_path: Path, colour_bundle: Path
) -> None:
    """P6: the thread of the event loop reads no header, runs no Pillow, no fsync and no rename."""
    loop_thread = threading.get_ident()
    on_loop, elsewhere = Counter[str](), Counter[str]()

    def watch(frame: FrameType, event: str, argument: object) -> None:
        seen = on_loop if threading.get_ident() == loop_thread else elsewhere
        file = frame.f_code.co_filename
        if event == "call" and (file == jpeg.__file__ or "/PIL/" in file):
            seen["headers"] += 1
        elif event == "c_call" and argument in (os.fsync, os.replace, os.rename):
            seen["disk"] += 1

    pictures = [picture(seed) for seed in range(5)]
    before = sys.getprofile()
    threading.setprofile(watch)  # for new threads, which include all of the backend's
    try:
        async with open_api(api_settings(tmp_path, colour_bundle)) as api:
            sys.setprofile(watch)
            for data in pictures:
                response = await api.client.post(V1, content=data)
                assert response.status_code == 202
            sys.setprofile(before)
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    assert on_loop == {}
    assert elsewhere["headers"] >= len(pictures)
    assert elsewhere["disk"] > 0


@pytest.mark.parametrize("call", ["blobs.put", "publisher.publish"])
async def test_reconciler_does_not_end_an_upload_that_is_accepted(
    tmp_path: Path, colour_bundle: Path, call: str
) -> None:
    """P1. It has found no bytes of a slow upload, and ends the record before or after they come."""
    movable = MovableClock()
    settings = api_settings(tmp_path, colour_bundle)
    refused: list[bool] = []

    @asynccontextmanager
    async def opener(settings: Settings, clock: Clock) -> AsyncIterator[Backend]:
        async with open_backend(settings, clock) as backend:

            async def happens(called: str, after: bool) -> None:
                if called == "blobs.put" and not after and not refused:
                    movable.move(settings.delivery.stale_after + 1)
                if called == call and not after and not refused:
                    stale = movable() - timedelta(seconds=settings.delivery.stale_after)
                    error = RecordError(UPLOAD_LOST, "The upload was interrupted.", True)
                    end = fail_unleased(error, untouched_since=stale)
                    key = RecordKey(PUBLIC_TENANT, HASH, api.key(HASH).model)
                    refused.append(await backend.records.change(key, end) is None)

            yield watched(backend, happens)

    async with open_api(settings, movable, opener) as api:
        assert (await api.client.post(V1, content=IMAGE)).status_code == 202
        await api.finish_submissions()
        assert (await api.client.get(f"{V1}/{HASH}")).json()["status"] == "queued"
    assert refused == [call == "publisher.publish"]


async def test_running_record_without_blob_is_stored_again(api: Api) -> None:
    """A message from before a deletion lets a worker claim the record of a new upload. If the API
    process of that upload ends before it stores the bytes, the next upload must store them."""
    await api.records.create(new_record(api.key(HASH), api.services.clock()))
    assert await claimed(api.records, api.key(HASH), LEASE) is not None
    assert (await api.client.post(V1, content=IMAGE)).status_code == 202
    assert api.traces() == Traces(records=1, blobs=1, messages=1)
    assert (await api.client.post(V1, content=IMAGE)).status_code == 202
    assert api.traces() == Traces(records=1, blobs=1, messages=1)


async def test_upload_of_an_image_that_a_job_requested_is_urgent(api: Api) -> None:
    """The message of the job is less urgent, and the job can be cancelled."""
    await api.services.backend.blobs.put(f"public/{HASH}", IMAGE, "image/jpeg")
    record = new_record(api.key(HASH), utc_now())
    await api.records.create(
        replace(record, status=Status.QUEUED, priority=Priority.LOW, job="another")
    )
    assert (await api.client.post(V1, content=IMAGE)).status_code == 202
    record = await api.record(HASH)
    assert (record.priority, record.job, api.traces().messages) == (Priority.HIGH, "", 1)
    assert (await api.client.post(V1, content=IMAGE)).status_code == 202
    assert api.traces().messages == 1


async def test_disconnect_ends_the_wait_of_an_upload(api: Api) -> None:
    async def disconnected() -> Message:
        return {"type": "http.disconnect"}

    with api.services.uploads.slot() as slot:
        upload = Upload(bytearray(IMAGE), HASH, slot)
        async with asyncio.timeout(TIMEOUT):
            images = api.services.images
            result, known = await images.submit(
                api.key(HASH), upload, images.default_view, Wait(HOUR, disconnected)
            )
    assert (result.status.terminal, known) == (False, False)


async def test_job_gives_back_its_slot_before_its_records_are_written(
    tmp_path: Path, colour_bundle: Path
) -> None:
    """Its images are stored then, so it holds no bytes."""
    port = HangingPort("jobs.create")
    async with open_api(api_settings(tmp_path, colour_bundle), opener=port.open_backend) as api:
        creation = asyncio.create_task(
            api.client.post("/api/v1/jobs/batch-predict", files={"imgs": IMAGE})
        )
        await port.asked.wait()
        assert (api.services.uploads.in_flight, api.services.uploads.bytes_reserved) == (0, 0)
        port.answers.set()
        assert (await creation).status_code == 202
