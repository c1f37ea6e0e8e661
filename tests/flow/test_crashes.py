"""P1, P2 and P4 against `kill -9`: an accepted image ends once, whichever process is killed."""

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.flow.absence import images_wait_for_an_absent_worker
from tests.support.pictures import picture, sha256
from tests.support.seeds import drawn_seed
from tests.support.stack import Stack

IMAGES = {"embedded": 300, "emulator": 100}  # the emulators store thirty a second
UPLOADING_SECONDS = (
    10.0  # seconds over which the uploads are spread, so that kills happen among them
)


@pytest.fixture(params=["embedded", "emulator"])
def backend(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings that choose the backend."""
    if request.param == "embedded":
        return {}
    namespace: dict[str, str] = request.getfixturevalue("emulator_namespace")
    # Pub/Sub counts a push that finds no worker as a delivery; the embedded queue does not.
    return {**namespace, "DELIVERY_ATTEMPTS": "100"}


@pytest.mark.timeout(300)
def test_kill_9_at_random_moments_loses_nothing(
    tmp_path: Path, colour_bundle: Path, backend: dict[str, str]
) -> None:
    seed = drawn_seed("kill times")
    count = IMAGES[backend.get("BACKEND", "embedded")]
    images = {sha256(i): i for i in (picture(seed=n, size=(48, 48)) for n in range(count))}
    accepted: list[str] = []
    with Stack(tmp_path, colour_bundle, **backend) as stack:
        killed: list[str] = []
        uploaded = threading.Event()
        killer = threading.Thread(target=_kill_at_random, args=(stack, uploaded, seed, killed))
        killer.start()
        began = time.monotonic()

        def upload(numbered: tuple[int, bytes]) -> tuple[str, int]:
            number, image = numbered
            time.sleep(max(0.0, began + UPLOADING_SECONDS * number / count - time.monotonic()))
            return sha256(image), stack.retry(lambda: stack.upload(image)).status_code

        try:
            with ThreadPoolExecutor(8) as pool:
                for image_hash, status in pool.map(upload, enumerate(images.values())):
                    assert status in (200, 202)
                    if status == 202:
                        accepted.append(image_hash)
        finally:
            uploaded.set()
            killer.join()
        assert set(killed) == set(stack.names)
        results = stack.results(images, timeout=120)
        assert {r["status"] for r in results.values()} == {"success"}
        finished = _completions(stack)
    assert len(accepted) > count / 2
    # One stored result each: a second completion would be refused and not logged. A worker that is
    # killed between storing a result and logging it writes no line.
    assert max(finished.values()) == 1
    assert sum(image_hash not in finished for image_hash in images) <= 16


def _kill_at_random(stack: Stack, uploaded: threading.Event, seed: int, killed: list[str]) -> None:
    draw = random.Random(seed)
    while not uploaded.is_set() or len(killed) < len(stack.names):
        for name in draw.sample(stack.names, len(stack.names)):
            time.sleep(draw.uniform(0.05, 0.8))
            stack.kill(name)
            killed.append(name)
            stack.start(name)


def _completions(stack: Stack) -> Counter[str]:
    """The number of results that the worker stored for each image, from its log."""
    return Counter(
        line["image_hash"] for line in stack.log_lines("worker") if line["message"] == "classified"
    )


def test_worker_down_then_back(tmp_path: Path, colour_bundle: Path) -> None:
    # Three attempts only: a worker that is not there must not use them up.
    with Stack(tmp_path, colour_bundle, DELIVERY_ATTEMPTS=3) as stack:
        images_wait_for_an_absent_worker(stack)


def test_queue_down_then_back(tmp_path: Path, colour_bundle: Path) -> None:
    with Stack(tmp_path, colour_bundle) as stack:
        stack.kill("queue")
        image = picture(seed=1)
        assert stack.upload(image).status_code == 202
        stack.start("queue")
        assert stack.result(sha256(image))["status"] == "success"


def test_message_that_always_fails_ends_as_an_error_and_is_kept(
    tmp_path: Path, colour_bundle: Path
) -> None:
    settings = {"DELIVERY_ATTEMPTS": 3, "MAX_BACKOFF_SECONDS": 0.3}
    with Stack(tmp_path, colour_bundle, **settings) as stack:
        # A worker whose bundle is broken refuses every delivery.
        stack.stop("worker")
        broken = tmp_path / "broken"
        broken.mkdir()
        good, stack.environment["MODEL_URI"] = stack.environment["MODEL_URI"], str(broken)
        with pytest.raises(AssertionError, match="did not become ready"):
            stack.start("worker", timeout=3.0)
        image = picture(seed=1)
        assert stack.upload(image).status_code == 202
        result = stack.result(sha256(image))
        assert result["status"] == "error"
        error = result["error"]
        assert isinstance(error, dict)
        assert error["code"] == "model_unavailable"
        assert error["retryable"] is True
        # The dead letter is kept. After the worker is repaired, a new upload makes a new attempt.
        stack.environment["MODEL_URI"] = good
        stack.stop("worker")
        stack.start("worker")
        assert stack.upload(image).status_code == 202
        assert stack.result(sha256(image))["status"] == "success"
