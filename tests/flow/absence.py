"""The flow test of a stopped worker, for every backend."""

import time

from tests.support.pictures import picture, sha256
from tests.support.stack import Stack


def images_wait_for_an_absent_worker(stack: Stack) -> None:
    """Ten uploads while the worker is stopped stay unfinished. All end after it starts again."""
    images = [picture(seed=n) for n in range(10)]
    stack.stop("worker")
    for image in images:
        assert stack.upload(image).status_code == 202
    time.sleep(2)
    for image in images:
        assert stack.api.get(f"/what/status/{sha256(image)}").status_code == 202
    stack.start("worker")
    results = stack.results(sha256(image) for image in images)
    assert {result["status"] for result in results.values()} == {"success"}
