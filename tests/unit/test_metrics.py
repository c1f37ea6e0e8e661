"""Metrics for Prometheus, also of two applications in one process."""

import asyncio
from pathlib import Path

import grpc.aio
import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics

from app.metrics import ApiMetrics
from core.backends import open_backend
from core.backends.google.publisher import PubSubPublisher
from core.domain.records import RecordKey
from core.observability.metrics import ServiceMetrics
from tests.support.api import api_settings, eventually, open_api
from tests.support.clock import LoopClock
from tests.support.faults import watched
from tests.support.metrics import samples, series
from tests.support.pictures import picture
from tests.support.worker import running_worker, settings_in

REQUESTS = "glimpse_http_requests_total"


async def scraped(client: httpx.AsyncClient) -> dict[str, float]:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return samples(answer.text)


async def test_requests_are_counted_by_template_and_never_by_path(
    tmp_path: Path, colour_bundle: Path
) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        for number in range(3):
            await api.client.get(f"/api/v1/images/{number:064}")
            await api.client.get(f"/wp-login.php?attempt={number}")
            await api.client.request(f"BREW{number}", "/health")
        seen = await scraped(api.client)
    assert (
        seen[series(REQUESTS, method="GET", route="/api/v1/images/{image_hash}", status=404)] == 3
    )
    assert seen[series(REQUESTS, method="GET", route="unmatched", status=404)] == 3
    assert seen[series(REQUESTS, method="_OTHER", route="/health", status=405)] == 3
    name = "glimpse_http_request_duration_seconds_count"
    assert seen[series(name, method="GET", route="unmatched")] == 3
    assert not [name for name in seen if "0" * 60 in name or "BREW" in name or "wp-" in name]
    assert not [name for name in seen if name.endswith("_created") or "_created{" in name]


async def test_uploads_are_counted_by_status_and_cache(tmp_path: Path, colour_bundle: Path) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        await api.client.post("/api/v1/images", content=b"no image")
        image_hash = (await api.client.post("/api/v1/images", content=picture())).json()[
            "image_hash"
        ]
        await api.finish_submissions()
        await api.succeed(image_hash)
        for _ in range(3):  # the first result comes from the store
            assert (await api.client.post("/api/v1/images", content=picture())).status_code == 200
        seen = await scraped(api.client)
    uploads = {name: value for name, value in seen.items() if "glimpse_uploads" in name and value}
    assert uploads == {
        series("glimpse_uploads_total", status="pending", cache="miss"): 1,
        series("glimpse_uploads_total", status="success", cache="miss"): 1,
        series("glimpse_uploads_total", status="success", cache="hit"): 2,
    }
    # The message is published, and no queue runs that could deliver it.
    assert seen["glimpse_queue_messages"] == 1
    assert seen["glimpse_queue_oldest_message_age_seconds"] > 0


async def test_worker_counts_the_outcomes_of_messages(tmp_path: Path) -> None:
    async with running_worker(settings_in(tmp_path)) as worker:
        good = await worker.submit()
        bad = await worker.submit(picture()[:200])
        for _ in range(2):
            assert (await worker.push(good)).status_code == 204
        assert (await worker.push(bad)).status_code == 204
        stranger = await worker.submit(picture(seed=9), model="unknown@0123456789ab")
        assert (await worker.push(stranger)).status_code == 503
        for key in (stranger, good, RecordKey("public", "0" * 64, worker.model)):
            assert (await worker.dead_letter(key)).status_code == 204
        await worker.client.post("/generate_annotations_dlq", content=b"?")
        await worker.client.post("/reconcile")
        seen = await scraped(worker.client)
    ended = {
        code: seen[series("glimpse_classifications_total", code=code)]
        for code in ("success", "duplicate", "undecodable_image", "model_unavailable")
    }
    assert ended == dict.fromkeys(ended, 1)
    letters = {
        code: seen[series("glimpse_dead_letters_total", code=code)]
        for code in ("model_unavailable", "finished_image", "unknown_image", "unreadable")
    }
    assert letters == dict.fromkeys(letters, 1)
    assert seen["glimpse_queue_delay_seconds_count"] == 2
    assert 0 < seen["glimpse_queue_delay_seconds_sum"] < 60
    assert seen["glimpse_inference_duration_seconds_count"] == 2
    assert seen[series("glimpse_reconciled_records_total", outcome="republished")] == 0


async def test_applications_in_one_process_have_separate_metrics(
    tmp_path: Path, colour_bundle: Path
) -> None:
    async with (
        open_api(api_settings(tmp_path / "one", colour_bundle)) as one,
        open_api(api_settings(tmp_path / "other", colour_bundle)) as other,
    ):
        await one.client.get("/health")
        name = series(REQUESTS, method="GET", route="/health", status=204)
        assert (await scraped(one.client))[name] == 1
        assert name not in await scraped(other.client)


async def test_metrics_can_be_turned_off(tmp_path: Path, colour_bundle: Path) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle, metrics=False)) as api:
        assert (await api.client.get("/metrics")).status_code == 404
    async with running_worker(settings_in(tmp_path, metrics=False)) as worker:
        assert (await worker.client.get("/metrics")).status_code == 404


async def test_openmetrics_is_served_on_request(tmp_path: Path, colour_bundle: Path) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        accept = {"accept": "application/openmetrics-text;version=1.0.0"}
        answer = await api.client.get("/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert "glimpse_http_requests" in {
        family.name
        for family in open_metrics(answer.text)  # type: ignore[no-untyped-call]
    }


async def test_blocked_event_loop_is_measured(loop_clock: LoopClock) -> None:
    metrics = ServiceMetrics()

    async def seen() -> bool:
        return exposed(metrics)["glimpse_event_loop_lag_seconds_count"] > 0

    watching = asyncio.create_task(metrics.sample_event_loop_lag())
    try:
        await asyncio.sleep(0)
        await loop_clock.move(100)  # as if something blocked the loop
        await eventually(seen)
    finally:
        watching.cancel()
    assert 97 < exposed(metrics)["glimpse_event_loop_lag_seconds_sum"] < 200


def test_requests_in_flight_are_counted() -> None:
    metrics = ServiceMetrics()
    metrics.in_flight += 2
    assert exposed(metrics)["glimpse_http_requests_in_flight"] == 2


async def test_unknown_queue_size_is_not_exposed(tmp_path: Path, colour_bundle: Path) -> None:
    registry = CollectorRegistry()
    metrics = ApiMetrics(registry)

    def shown() -> bool:
        return "glimpse_queue_messages" in samples(generate_latest(registry).decode())

    async with open_backend(api_settings(tmp_path, colour_bundle)) as backend:
        await metrics.refresh_backlog(backend.publisher)
        assert shown()
    await metrics.refresh_backlog(backend.publisher)  # its database is closed
    assert not shown()


async def test_scrape_does_not_wait_long_for_the_queue_size(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.metrics.BACKLOG_SECONDS", 0.01)
    registry = CollectorRegistry()

    async def hang(call: str, after: bool) -> None:
        await asyncio.get_running_loop().create_future()

    async with open_backend(api_settings(tmp_path, colour_bundle)) as backend:
        async with asyncio.timeout(10):
            await ApiMetrics(registry).refresh_backlog(watched(backend, hang).publisher)
    assert "glimpse_queue_messages" not in samples(generate_latest(registry).decode())


async def test_queue_size_of_pubsub_is_not_exposed() -> None:
    registry = CollectorRegistry()
    async with grpc.aio.insecure_channel("127.0.0.1:9") as channel:
        await ApiMetrics(registry).refresh_backlog(PubSubPublisher(channel, "a-project", "a-topic"))
    assert "glimpse_queue_messages" not in samples(generate_latest(registry).decode())


def exposed(metrics: ServiceMetrics) -> dict[str, float]:
    return samples(metrics.exposition("")[0].decode())
