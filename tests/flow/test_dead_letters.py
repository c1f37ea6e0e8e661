"""Dead letters with real processes: kept when a process is killed, replayed over HTTP (P4)."""

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.pictures import picture, sha256
from tests.support.seeds import drawn_seed
from tests.support.stack import Stack

IMAGES = 30
URL = "/api/v1/dead-letters"


def letters(stack: Stack) -> list[dict[str, Any]]:
    """All open dead letters, read page by page."""
    found: list[dict[str, Any]] = []
    query = {"limit": "7"}
    while True:
        page = stack.api.get(URL, params=query).json()
        found += page["dead_letters"]
        if page["next_cursor"] is None:
            return found
        query["cursor"] = page["next_cursor"]


def blob(stack: Stack, image: bytes) -> Path:
    image_hash = sha256(image)
    return stack.folder / "data" / "blobs" / "public" / image_hash[:2] / image_hash


@pytest.mark.timeout(240)
def test_dead_letters_are_kept_once_and_replayed_although_processes_are_killed(
    tmp_path: Path, colour_bundle: Path
) -> None:
    seed = drawn_seed("kill times")
    draw = random.Random(seed)
    images = {sha256(image): image for image in (picture(n, size=(48, 48)) for n in range(IMAGES))}
    settings = {"DELIVERY_ATTEMPTS": 3, "MAX_BACKOFF_SECONDS": 0.3}
    with Stack(tmp_path, colour_bundle, **settings) as stack:
        stack.stop("worker")
        for image in images.values():
            assert stack.upload(image).status_code == 202
            # Reading it now fails, as on a disk that is missing.
            blob(stack, image).unlink()
            blob(stack, image).mkdir()
        ended = threading.Event()

        def kill_at_random() -> None:
            while not ended.is_set():
                for name in draw.sample(("worker", "queue"), 2):
                    stack.kill(name)
                    stack.start(name)
                    time.sleep(draw.uniform(0.05, 0.6))

        stack.start("worker")
        killer = threading.Thread(target=kill_at_random)
        killer.start()
        try:
            results = stack.results(images, timeout=120)
        finally:
            ended.set()
            killer.join()
        assert {result["status"] for result in results.values()} == {"error"}
        deadline = time.monotonic() + 30
        while (kept := letters(stack)) and len(kept) < IMAGES and time.monotonic() < deadline:
            time.sleep(0.1)
        assert sorted(letter["image_hash"] for letter in kept) == sorted(images)
        for letter in kept:
            error = results[letter["image_hash"]]["error"]
            assert isinstance(error, dict)
            assert (error["code"], error["retryable"]) == ("delivery_exhausted", True)
            # The worker is killed at each delivery, so the queue gives the reason.
            assert letter["error"]["detail"] in error["detail"]
        told = sum(letter["error"]["code"] == "unavailable" for letter in kept)
        assert told > IMAGES / 2
        assert any(
            "The image storage does not answer." in letter["error"]["detail"] for letter in kept
        )

        for image in images.values():
            blob(stack, image).rmdir()
            blob(stack, image).write_bytes(image)
        one, *_ = kept
        assert stack.api.post(f"{URL}/{one['id']}/replay").json() == {"outcome": "replayed"}
        outcomes = stack.api.post(f"{URL}/replay", params={"limit": "200"}).json()
        assert outcomes["replayed"] == IMAGES - 1
        results = stack.results(images, timeout=60)
        assert {result["status"] for result in results.values()} == {"success"}
        assert letters(stack) == []


def test_the_model_s_own_failure_is_what_the_client_reads(tmp_path: Path) -> None:
    from tests.support.bundles import write_failing_bundle

    bundle = write_failing_bundle(tmp_path / "bundle")
    settings = {"DELIVERY_ATTEMPTS": 3, "MAX_BACKOFF_SECONDS": 0.3}
    with Stack(tmp_path, bundle, **settings) as stack:
        image = picture(1)
        assert stack.upload(image).status_code == 202
        error = stack.result(sha256(image))["error"]
        assert isinstance(error, dict)
        reason = "inference_failed: The model returned scores that are not finite numbers."
        assert (
            error["detail"]
            == f"The image was not classified after 3 deliveries. Last failure: {reason}"
        )
        (letter,) = letters(stack)
        assert (letter["error"]["code"], letter["attempts"]) == ("inference_failed", 3)
        assert stack.api.delete(f"{URL}/{letter['id']}").status_code == 204
        assert letters(stack) == []
