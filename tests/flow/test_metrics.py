"""The metrics of both services after known traffic."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.metrics import families, samples, series
from tests.support.pictures import picture, sha256
from tests.support.plain_http import NO_TLS
from tests.support.stack import ROOT, TIMEOUT, Stack, until

REQUESTS = "glimpse_http_requests_total"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, colour_bundle: Path) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), colour_bundle) as running:
        yield running


def exposition(stack: Stack, service: str) -> str:
    port = {"api": stack.api_port, "worker": stack.worker_port}[service]
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30, verify=NO_TLS)
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return answer.text


def documented() -> dict[str, dict[str, tuple[str, frozenset[str]]]]:
    """Type and labels of each documented metric, by service and name."""
    text = (ROOT / "docs/operations/metrics-and-traces.md").read_text()
    rows = re.findall(r"^\| `(glimpse_\w+)` \| (\w+) \|([^|]*)\|([^|]*)\|", text, re.MULTILINE)
    assert len(rows) > 8
    found: dict[str, dict[str, tuple[str, frozenset[str]]]] = {"api": {}, "worker": {}}
    for name, kind, labels, services in rows:
        for service in found.keys() if services.strip() == "both" else {services.strip()}:
            found[service][name] = (kind, frozenset(re.findall(r"`(\w+)`", labels)))
    return found


def test_known_traffic_is_counted(stack: Stack) -> None:
    image, broken = picture(seed=1), picture(seed=2, size=(400, 300))[:2000]
    before = {service: samples(exposition(stack, service)) for service in ("api", "worker")}
    assert stack.upload(image).status_code == 202
    stack.result(sha256(image))
    for _ in range(3):  # from the cache of the process, which the lookup of the status has filled
        assert stack.upload(image).status_code == 200
    assert stack.upload(b"no image").status_code == 415
    assert stack.upload(broken).status_code == 202
    stack.result(sha256(broken))
    assert stack.api.get("/what/status/" + "0" * 64).status_code == 404

    fast = {"method": "POST", "route": "/what/fast"}
    status = {"method": "GET", "route": "/what/status/{image_hash}"}
    push = {"method": "POST", "route": "/generate_annotations", "status": 204}
    wanted = {
        "api": {
            series(REQUESTS, **fast, status=202): 2,
            series(REQUESTS, **fast, status=200): 3,
            series(REQUESTS, **fast, status=415): 1,
            series(REQUESTS, **status, status=404): 1,
            series(REQUESTS, **status, status=200): 2,
            series("glimpse_http_request_duration_seconds_count", **fast): 6,
            series("glimpse_uploads_total", status="success", cache="hit"): 3,
            series("glimpse_uploads_total", status="pending", cache="miss"): 2,
        },
        "worker": {
            series(REQUESTS, **push): 2,
            series("glimpse_classifications_total", code="success"): 1,
            series("glimpse_classifications_total", code="undecodable_image"): 1,
            series("glimpse_queue_delay_seconds_count"): 2,
            series("glimpse_inference_duration_seconds_count"): 2,
        },
    }
    for service, counts in wanted.items():
        assert gained(stack, service, before[service], counts) == counts
    # The scrape itself is in flight, and sometimes also a call of the scheduler.
    until(lambda: in_flight(stack) == 1, "only the scrape in flight")


def gained(
    stack: Stack, service: str, before: dict[str, float], wanted: dict[str, int]
) -> dict[str, float]:
    """The increase of each series, as soon as it is enough.

    A request is counted shortly after its response.
    """
    ends = time.monotonic() + TIMEOUT
    while True:
        now = samples(exposition(stack, service))
        more = {key: now.get(key, 0) - before.get(key, 0) for key in wanted}
        if all(more[key] >= wanted[key] for key in wanted) or time.monotonic() > ends:
            return more
        time.sleep(0.05)


def in_flight(stack: Stack) -> float:
    return samples(exposition(stack, "worker"))["glimpse_http_requests_in_flight"]


def queued(stack: Stack) -> float:
    return samples(exposition(stack, "api"))["glimpse_queue_messages"]


def test_queue_size_is_exposed_while_the_worker_is_down(stack: Stack) -> None:
    until(lambda: queued(stack) == 0, "messages of earlier tests are delivered")
    stack.stop("worker")
    for seed in (11, 12, 13):
        stack.upload(picture(seed=seed))
    seen = samples(exposition(stack, "api"))
    assert seen["glimpse_queue_messages"] == 3
    assert seen["glimpse_queue_oldest_message_age_seconds"] > 0
    stack.start("worker")
    stack.results(sha256(picture(seed=seed)) for seed in (11, 12, 13))
    until(lambda: queued(stack) == 0, "the queue is empty")


def test_documentation_lists_every_metric(stack: Stack) -> None:
    # Each metric with labels needs one event.
    image = picture(seed=21)
    stack.upload(image)
    stack.result(sha256(image))
    worker = httpx.Client(
        base_url=f"http://127.0.0.1:{stack.worker_port}",
        headers=stack.push_headers(),
        timeout=30,
        verify=NO_TLS,
    )
    with worker:
        worker.post("/generate_annotations_dlq", content=b"?")
        worker.post("/reconcile")
    for service, wanted in documented().items():
        there = families(exposition(stack, service))
        ours = {name: entry for name, entry in there.items() if name.startswith("glimpse_")}
        assert ours == wanted, service
        assert {name for name in there if not name.startswith("glimpse_")} == {
            "process_cpu_seconds_total",
            "process_max_fds",
            "process_open_fds",
            "process_resident_memory_bytes",
            "process_start_time_seconds",
            "process_virtual_memory_bytes",
        }
