"""P6: the event loop never blocks. A detector raises if a blocking call is made on it."""

import asyncio
import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from blockbuster import BlockBuster, BlockingError, blockbuster_ctx

from app.main import create_app as create_api
from core.bundles.bundle import read_bundle
from core.domain.records import RecordKey
from core.errors import BundleError, BundleUnavailable
from tests.support.batches import archive
from tests.support.buckets import fill_bundle
from tests.support.pictures import picture, sha256
from tests.support.scripted_worker import until
from tests.support.worker import envelope, push_headers, settings_in
from worker.main import create_app as create_worker


@pytest.fixture
def detector() -> Iterator[BlockBuster]:
    """Checks the code of the services. Tests activate it after the start, which may read files."""
    with blockbuster_ctx(["app", "worker", "core"]) as blockbuster:
        blockbuster.deactivate()
        yield blockbuster


async def test_detector_raises_on_a_blocking_call(tmp_path: Path, detector: BlockBuster) -> None:
    (tmp_path / "model.json").write_text("{}")
    detector.activate()
    with pytest.raises(BlockingError):
        read_bundle(tmp_path)
    with pytest.raises(BundleError):
        await asyncio.to_thread(read_bundle, tmp_path)


async def test_no_request_makes_a_blocking_call(tmp_path: Path, detector: BlockBuster) -> None:
    settings = settings_in(tmp_path)
    api, worker = create_api(settings), create_worker(settings)
    async with api.router.lifespan_context(api), worker.router.lifespan_context(worker):
        clients = [
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app),
                base_url="http://127.0.0.1",
                headers=push_headers(settings),
            )
            for app in (api, worker)
        ]
        detector.activate()
        try:
            await _every_kind_of_request(*clients)
        finally:
            detector.deactivate()
            for client in clients:
                await client.aclose()


async def test_lookup_of_a_model_in_a_bucket_makes_no_blocking_call(
    tmp_path: Path, colour_bundle: Path, storage_url: str, detector: BlockBuster
) -> None:
    model, bucket = "colours", f"models-{secrets.token_hex(4)}"
    settings = settings_in(tmp_path, storage_emulator_host=storage_url).model_copy(
        update={"model_uri": f"gs://{bucket}/{model}"}
    )
    worker = create_worker(settings)
    async with worker.router.lifespan_context(worker):
        detector.activate()
        try:
            with pytest.raises(BundleUnavailable, match="no bucket"):
                await worker.state.context.models.check()
            await fill_bundle(settings, bucket, model, colour_bundle)
            await until(lambda: worker.state.context.models.identities != ())
            await worker.state.context.models.check()
        finally:
            detector.deactivate()


async def _every_kind_of_request(api: httpx.AsyncClient, worker: httpx.AsyncClient) -> None:
    images = [picture(seed=1), picture(seed=2, size=(1600, 1200)), picture(seed=3, format_="AVIF")]
    images.append(images[1][: len(images[1]) // 2])  # truncated
    for image in images:
        accepted = await api.post("/what/fast", files={"img": ("p.jpg", image)})
        assert accepted.status_code == 202
        document = accepted.json()
        key = RecordKey("public", document["image_hash"], document["model"])
        pushed = await worker.post("/generate_annotations", content=envelope(key))
        assert pushed.status_code == 204
        assert (await api.get(f"/what/status/{sha256(image)}")).status_code == 200
    image_hash = sha256(images[0])
    assert (await api.post("/api/v1/images", content=images[0])).status_code == 200
    await _every_kind_of_batch(api, images)
    link = await api.get(f"/api/v1/images/{image_hash}/content")
    assert link.status_code == 307
    assert (await api.get(link.headers["location"])).content == images[0]
    refused = await api.post("/what/fast", files={"img": ("p.jpg", b"not an image")})
    assert refused.status_code == 415
    garbage = await api.post("/what/fast", files={"img": ("p.png", b"\x89PNG\r\n\x1a\n garbage")})
    assert garbage.status_code == 422
    for client in (api, worker):
        assert (await client.get("/ready")).status_code == 200
    assert (await worker.post("/generate_annotations", content=b"{}")).status_code == 400
    assert (await worker.post("/reconcile", content=b"{}")).status_code == 200
    assert (await api.delete(f"/api/v1/images/{image_hash}")).status_code == 204


async def _every_kind_of_batch(api: httpx.AsyncClient, images: list[bytes]) -> None:
    path = "/api/v1/jobs/batch-predict"
    new = [*images, b"no image", picture(seed=4)]
    zipped = archive((f"{number}.jpg", image) for number, image in enumerate(new))
    hashes = {"image_hashes": [sha256(image) for image in new]}
    for answer in (
        await api.post(path, files=[("imgs", ("p.jpg", image)) for image in new]),
        await api.post(path, content=zipped, headers={"Content-Type": "application/zip"}),
        await api.post(path, json=hashes),
    ):
        assert answer.status_code == 202
        job = answer.headers["location"]
        for accept in ("application/json", "application/x-ndjson", "text/csv"):
            results = await api.get(f"{job}/results", headers={"Accept": accept})
            assert results.status_code == 200
        assert (await api.get("/api/v1/jobs")).status_code == 200
        assert (await api.delete(job)).json()["status"] == "cancelled"
    assert (await api.post("/api/v1/images/lookup", json=hashes)).status_code == 200
