"""Thumbnails that a worker stores: with a classification, on demand, and not after a deletion."""

import io
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from core.domain.dead_letters import LetterFilter
from core.domain.messages import DEAD_LETTER_DELIVERY_COUNT, MakeThumbnail
from core.domain.records import NO_THUMBNAIL, RecordKey, Status, thumbnail_name
from core.errors import NotFound, Unavailable
from core.services.dead_letter_replay import Replay, replay
from tests.support.pictures import picture, sha256
from tests.support.worker import RunningWorker, body, running_worker, settings_in

PHOTO = picture(1, (20, 20, 220), (640, 320), "PNG")


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[RunningWorker]:
    async with running_worker(settings_in(tmp_path)) as running:
        yield running


async def thumbnail(worker: RunningWorker, key: RecordKey) -> bytes:
    return await worker.backend.blobs.get(thumbnail_name(key.tenant, key.image_hash))


async def ask(worker: RunningWorker, key: RecordKey) -> httpx.Response:
    return await worker.send(MakeThumbnail(key.tenant, key.image_hash))


async def test_classified_image_has_a_thumbnail(worker: RunningWorker) -> None:
    key = await worker.submit(PHOTO)
    assert (await worker.push(key)).status_code == 204
    with Image.open(io.BytesIO(await thumbnail(worker, key))) as image:
        assert (image.format, image.size) == ("WEBP", (256, 128))


async def test_setting_turns_thumbnails_off(tmp_path: Path) -> None:
    async with running_worker(settings_in(tmp_path, thumbnails=False)) as worker:
        key = await worker.submit(PHOTO)
        assert (await worker.push(key)).status_code == 204
        assert (await ask(worker, key)).status_code == 204
        with pytest.raises(NotFound):
            await thumbnail(worker, key)


async def test_missing_thumbnail_is_made_on_demand(worker: RunningWorker) -> None:
    key = await worker.submit(PHOTO)
    assert (await ask(worker, key)).status_code == 204
    first = await thumbnail(worker, key)
    assert first.startswith(b"RIFF")
    assert (await worker.record(key)).status is Status.PENDING
    assert (await ask(worker, key)).status_code == 204
    assert await thumbnail(worker, key) == first


async def test_image_that_cannot_be_decoded_is_asked_for_once(worker: RunningWorker) -> None:
    key = await worker.submit(PHOTO[:2000])
    assert (await ask(worker, key)).status_code == 204
    assert await thumbnail(worker, key) == NO_THUMBNAIL


async def test_thumbnail_of_a_deleted_image_is_not_stored(worker: RunningWorker) -> None:
    """The image is deleted while a worker has its pixels."""
    key = await worker.submit(PHOTO)

    async def delete_before_put(call: str, after: bool) -> None:
        if call == "blobs.put" and not after:
            await worker.backend.blobs.delete(key.blob_name)
            await worker.backend.blobs.delete(thumbnail_name(key.tenant, key.image_hash))

    with worker.watching(delete_before_put):
        await worker.push(key)
    with pytest.raises(NotFound):
        await thumbnail(worker, key)


async def test_failing_storage_does_not_cost_the_classification(worker: RunningWorker) -> None:
    key = await worker.submit(PHOTO)

    async def fail_put(call: str, after: bool) -> None:
        if call == "blobs.put":
            raise Unavailable("The image storage does not answer.")

    with worker.watching(fail_put):
        assert (await worker.push(key)).status_code == 204
        assert (await ask(worker, key)).status_code == 503
    assert (await worker.record(key)).status is Status.SUCCESS
    assert (await ask(worker, key)).status_code == 204
    assert await thumbnail(worker, key)


async def test_deleted_image_needs_no_thumbnail(worker: RunningWorker) -> None:
    key = RecordKey("public", sha256(b"never stored"), worker.model)
    assert (await ask(worker, key)).status_code == 204
    with pytest.raises(NotFound):
        await thumbnail(worker, key)


async def test_message_that_used_up_its_deliveries_can_be_replayed(worker: RunningWorker) -> None:
    message = MakeThumbnail("public", sha256(PHOTO))
    attributes = {**message.attributes(), DEAD_LETTER_DELIVERY_COUNT: "5"}
    answer = await worker.client.post(
        "/generate_annotations_dlq", content=body(attributes=attributes)
    )
    assert answer.status_code == 204
    (letter,) = await worker.backend.dead_letters.list(LetterFilter("public"), 2)
    assert await replay(worker.backend, "public", letter.id) is Replay.REPLAYED
    assert worker.published() == [message]
