"""Pub/Sub's emulator: redelivery, duplicates, dead letters, a stopped worker."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.backends import open_backend
from core.backends.google.provision import provision
from core.bundles.bundle import read_bundle
from core.domain.messages import ClassifyImage
from core.domain.records import RecordKey
from tests.flow.absence import images_wait_for_an_absent_worker
from tests.support.pictures import picture, sha256
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory,
    colour_bundle: Path,
    emulator_namespace: dict[str, str],
) -> Iterator[Stack]:
    # Pub/Sub counts a push that finds no worker as a delivery; the embedded queue does not.
    # A lease must not expire on a busy machine: that would be a second attempt.
    settings = {**emulator_namespace, "DELIVERY_ATTEMPTS": 100, "LEASE_SECONDS": 10}
    with Stack(tmp_path_factory.mktemp("stack"), colour_bundle, **settings) as running:
        yield running


def test_worker_down_then_back(stack: Stack) -> None:
    images_wait_for_an_absent_worker(stack)


async def test_duplicates_make_one_result(stack: Stack) -> None:
    image = picture(seed=20)
    assert stack.upload(image).status_code == 202
    model = read_bundle(stack.environment["MODEL_URI"]).identity
    key = RecordKey("public", sha256(image), model)
    async with open_backend(stack.settings) as backend:
        for _ in range(20):
            await backend.publisher.publish(ClassifyImage(key))
    result = stack.result(key.image_hash)
    assert (result["status"], result["attempts"]) == ("success", 1)
    await asyncio.sleep(1)  # the last duplicates
    assert stack.result(key.image_hash) == result
    assert stack.classifications(key.image_hash) == 1


def test_refused_delivery_is_repeated(stack: Stack) -> None:
    """A worker dies while it holds a claim: its push fails and is delivered again."""
    images = [picture(seed=100 + n) for n in range(20)]
    for image in images:
        assert stack.upload(image).status_code == 202
        if image is images[10]:
            stack.kill("worker")
    stack.start("worker")
    results = stack.results(sha256(image) for image in images)
    assert {result["status"] for result in results.values()} == {"success"}


async def test_set_up_again_changes_what_differs_and_loses_nothing(stack: Stack) -> None:
    stack.stop("worker")
    image = picture(seed=300)
    assert stack.upload(image).status_code == 202
    changed = stack.settings.model_copy(update={"lease_seconds": 20.0})
    await provision(changed)
    await provision(stack.settings)
    stack.start("worker")
    assert stack.result(sha256(image))["status"] == "success"


def test_a_message_that_always_fails_ends_as_an_error_and_is_replayed_on_request(
    tmp_path: Path, colour_bundle: Path, own_namespace: dict[str, str]
) -> None:
    settings = {**own_namespace, "DELIVERY_ATTEMPTS": 5, "MAX_BACKOFF_SECONDS": 0.3}
    with Stack(tmp_path, colour_bundle, **settings) as stack:
        # A worker without the API's model refuses every delivery.
        stack.stop("worker")
        good, other = stack.environment["MODEL_URI"], tmp_path / "other"
        from tests.support.bundles import write_colour_bundle

        stack.environment["MODEL_URI"] = str(write_colour_bundle(other, name="other"))
        stack.start("worker")
        image = picture(seed=1)
        assert stack.upload(image).status_code == 202
        result = stack.result(sha256(image))
        assert result["status"] == "error"
        error = result["error"]
        assert isinstance(error, dict)
        assert (error["code"], error["retryable"]) == ("model_unavailable", True)

        (letter,) = stack.api.get("/api/v1/dead-letters").json()["dead_letters"]
        assert letter["error"]["code"] == "model_unavailable"
        assert letter["attributes"]["image_hash"] == sha256(image)
        assert letter["attempts"] == 5

        stack.stop("worker")
        stack.environment["MODEL_URI"] = good
        stack.start("worker")
        replay = f"/api/v1/dead-letters/{letter['id']}/replay"
        assert stack.api.post(replay).json() == {"outcome": "replayed"}
        assert stack.result(sha256(image))["status"] == "success"
        assert stack.api.post(replay).json() == {"outcome": "resolved"}
