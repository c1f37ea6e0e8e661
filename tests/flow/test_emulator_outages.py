"""Responses of the services while a Google service is stopped, hangs, or has restarted."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from compose.emulators import RunningEmulators
from core.http.problems import MEDIA_TYPE
from tests.support.emulators import addresses_in, free_addresses, own_namespace, running_emulators
from tests.support.pictures import picture, sha256
from tests.support.plain_http import NO_TLS
from tests.support.process import with_constants
from tests.support.stack import Stack, until

# The timeouts of the clients are three to eight seconds. This allows for a busy machine.
QUICK = 20.0
CHECKS = {"datastore": "records", "storage": "blobs", "pubsub": "queue"}

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def namespace() -> dict[str, str]:
    return own_namespace(free_addresses())


@pytest.fixture(scope="module")
def emulators(
    tmp_path_factory: pytest.TempPathFactory, namespace: dict[str, str]
) -> Iterator[RunningEmulators]:
    """Emulators for this module, because it stops them."""
    folder = tmp_path_factory.mktemp("emulators")
    with running_emulators(folder, addresses_in(namespace)) as running:
        yield running


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory,
    colour_bundle: Path,
    emulators: RunningEmulators,
    namespace: dict[str, str],
) -> Iterator[Stack]:
    # A lease must not expire on a busy machine: that would be a second attempt.
    settings = {**namespace, "DELIVERY_ATTEMPTS": 100, "LEASE_SECONDS": 10}
    with Stack(tmp_path_factory.mktemp("stack"), colour_bundle, **settings) as running:
        yield running


def bring_back(name: str, how: str, emulators: RunningEmulators, stack: Stack) -> None:
    if how == "hanging":
        emulators.resume(name)
        return
    emulators.start(name)
    if name == "pubsub":  # it stores nothing on disk; Google's service does
        stack.set_up()


def take_down(name: str, how: str, emulators: RunningEmulators) -> None:
    if how == "hanging":
        emulators.suspend(name)
    else:
        emulators.stop(name)


def timed(call: Callable[[], httpx.Response]) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    answer = call()
    return answer, time.monotonic() - began


@pytest.mark.parametrize("how", ["stopped", "hanging"])
@pytest.mark.parametrize("name", ["datastore", "storage", "pubsub"])
def test_response_is_503_while_a_service_is_down(
    stack: Stack, emulators: RunningEmulators, name: str, how: str
) -> None:
    image = picture(seed=hash((name, how)) % 2**32)
    image_hash = sha256(image)
    take_down(name, how, emulators)
    try:
        answer, seconds = timed(lambda: stack.upload(image))
        assert answer.status_code == 503
        assert answer.headers["content-type"] == MEDIA_TYPE
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["code"] == "unavailable"
        assert seconds < QUICK

        for port in (stack.api_port, stack.worker_port):
            # Each check may take two seconds, and another one may delay it on a busy machine.
            until(partial(fails_alone, port, CHECKS[name]), f"{name} alone fails")
    finally:
        bring_back(name, how, emulators, stack)
    # The same processes still run, and the refused image is not stuck.
    stack.wait_ready("api")
    stack.wait_ready("worker")
    # A hanging Pub/Sub has received the message, and may deliver it before the next request.
    assert upload_until_accepted(stack, image) in (200, 202)
    assert stack.result(image_hash)["status"] == "success"


def fails_alone(port: int, check: str) -> bool:
    """Whether this port alone makes the service unready."""
    ready = httpx.get(f"http://127.0.0.1:{port}/ready", timeout=60, verify=NO_TLS)
    if ready.status_code == 200:
        return False  # a report is kept for some seconds
    assert ready.status_code == 503
    return {name for name, outcome in ready.json()["checks"].items() if outcome != "ok"} == {check}


def upload_until_accepted(stack: Stack, image: bytes) -> int:
    """Retry as a client does after `Retry-After`."""
    deadline = time.monotonic() + 60
    while True:
        answer = stack.upload(image)
        if answer.status_code != 503 or time.monotonic() > deadline:
            return answer.status_code
        time.sleep(int(answer.headers["retry-after"]))


def test_a_hanging_storage_does_not_hold_up_the_loop(
    stack: Stack, emulators: RunningEmulators
) -> None:
    images = [picture(seed=500 + n) for n in range(40)]  # more than there are threads
    emulators.suspend("storage")
    try:
        with ThreadPoolExecutor(len(images)) as pool:
            uploads = [pool.submit(stack.upload, image) for image in images]
            slowest, asked = 0.0, 0
            while not all(upload.done() for upload in uploads):
                health, seconds = timed(lambda: stack.api.get("/health"))
                assert health.status_code == 204
                slowest, asked = max(slowest, seconds), asked + 1
                time.sleep(0.05)
        assert {upload.result().status_code for upload in uploads} == {503}
        assert asked > 20
        assert (
            slowest < 4.0
        )  # a blocked loop would respond after the timeout of storage: 5 s and more
    finally:
        emulators.resume("storage")
    stack.wait_ready("api")
    statuses = {upload_until_accepted(stack, image) for image in images}
    assert statuses <= {200, 202}
    results = stack.results(sha256(image) for image in images)
    assert {result["status"] for result in results.values()} == {"success"}


@pytest.mark.parametrize("how", ["stopped", "hanging"])
def test_a_failed_publish_leaves_nothing_stuck(
    stack: Stack, emulators: RunningEmulators, how: str
) -> None:
    image = picture(seed=900 + (how == "hanging"))
    take_down("pubsub", how, emulators)
    try:
        refused = stack.upload(image)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        # The record exists, and is still pending.
        status = stack.api.get(f"/what/status/{sha256(image)}")
        assert (status.status_code, status.json()["status"]) == (202, "pending")
    finally:
        bring_back("pubsub", how, emulators, stack)
    stack.wait_ready("api")
    assert upload_until_accepted(stack, image) in (200, 202)
    result = stack.result(sha256(image))
    assert (result["status"], result["attempts"]) == ("success", 1)


def test_messages_that_a_queue_lost_are_published_again(
    tmp_path: Path, colour_bundle: Path, emulators: RunningEmulators, namespace: dict[str, str]
) -> None:
    """Pub/Sub's emulator loses its messages when it stops. The reconciler publishes them again."""
    short = with_constants(STALE_SECONDS=3)
    settings = {**namespace, "GOOGLE_CLOUD_PROJECT": "test-lost-messages", **short}
    images = [picture(seed=700 + n) for n in range(5)]
    with Stack(tmp_path, colour_bundle, **settings) as stack:
        stack.stop("worker")
        for image in images:
            assert stack.upload(image).status_code == 202
        emulators.kill("pubsub")
        emulators.start("pubsub")
        stack.set_up()
        stack.start("worker")
        results = stack.results(sha256(image) for image in images)
        assert {result["status"] for result in results.values()} == {"success"}
        assert '"record republished"' in stack.log("worker")
