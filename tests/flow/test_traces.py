"""One image is one trace, across real processes, as a collector receives it."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.bundles import write_colour_bundle
from tests.support.collector import Collector, Seen
from tests.support.pictures import picture, sha256
from tests.support.plain_http import NO_TLS
from tests.support.process import with_constants
from tests.support.stack import Stack, free_port, until

DELIVERY = "process glimpse-images-high-push"
DEAD_LETTER = "process glimpse-dead-letters-push"
TRACE, CLIENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
QUICKLY = {"OTEL_BSP_SCHEDULE_DELAY": 100}  # milliseconds between two exports

Tree = dict[tuple[str, str], Any]  # (service, name) of a span, and its children


@pytest.fixture(scope="module", params=["embedded", "emulator"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def collector(backend: str) -> Iterator[Collector]:
    """One for each stack, because they get the same images."""
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def stack(
    backend: str,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    colour_bundle: Path,
    collector: Collector,
) -> Iterator[Stack]:
    namespace = {} if backend == "embedded" else request.getfixturevalue("emulator_namespace")
    settings = {**namespace, **exporting_to(collector.url)}
    with Stack(tmp_path_factory.mktemp("stack"), colour_bundle, **settings) as running:
        yield running


def exporting_to(url: str) -> dict[str, object]:
    return {
        "TRACES": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        # If FastAPI's own spans were on, they would appear in the tree.
        "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
        **QUICKLY,
    }


def logged(stack: Stack, service: str, image_hash: str) -> list[dict[str, Any]]:
    """The log lines of the service about the image."""
    return [line for line in stack.log_lines(service) if line.get("image_hash") == image_hash]


def traces_of(stack: Stack, image_hash: str) -> set[str]:
    """The traces in log lines about the image, without those of lookups.

    A result can be read shortly before the worker writes its last lines about it.
    """

    def pushed() -> bool:
        return any(line["message"] == "request" for line in logged(stack, "worker", image_hash))

    until(pushed, "the log line of a push")
    lines = [*logged(stack, "api", image_hash), *logged(stack, "worker", image_hash)]
    assert len(lines) > 2
    return {line["trace"] for line in lines if line.get("method") != "GET"}


def tree(spans: list[Seen], trace: str, parent: str = "") -> Tree:
    """The spans of one trace below the span `parent`, as a tree. Siblings have different names."""
    children = [span for span in spans if span.trace == trace and span.parent == parent]
    found = {(span.service, span.name): tree(spans, trace, span.id) for span in children}
    assert len(found) == len(children), [span.name for span in children]
    return found


def names(tree_: Tree) -> set[tuple[str, str]]:
    return set(tree_).union(*(names(below) for below in tree_.values()))


def expected(stack: Stack, route: str = "POST /what/fast") -> Tree:
    prefix = stack.environment.get(
        "TOPIC_PREFIX", "glimpse"
    )  # each namespace on the emulators has another
    topic = f"{prefix}-images-high"
    steps = ("claim record", "read image", "decode", "infer", "store result")
    worker: Tree = {("glimpse-worker", step): {} for step in steps}
    return {
        ("glimpse-api", route): {
            ("glimpse-api", "look up record"): {},
            ("glimpse-api", "create record"): {},
            ("glimpse-api", "store image"): {},
            ("glimpse-api", f"send {topic}"): {("glimpse-worker", f"process {topic}-push"): worker},
            ("glimpse-api", "mark queued"): {},
        }
    }


def complete(stack: Stack, trace: str, parent: str = "") -> Any:
    return lambda spans: tree(spans, trace, parent) == expected(stack)


def test_image_is_one_trace_from_upload_to_result(stack: Stack, collector: Collector) -> None:
    image = picture(seed=1)
    assert stack.upload(image).status_code == 202
    assert stack.result(sha256(image))["status"] == "success"
    (trace,) = traces_of(stack, sha256(image))
    spans = collector.wait(complete(stack, trace))

    mine = [span for span in spans if span.trace == trace]
    about = [span for span in spans if sha256(image) in map(str, span.attributes.values())]
    assert {span.trace for span in about if span.name.startswith("process")} == {trace}
    assert {span.service for span in mine} == {"glimpse-api", "glimpse-worker"}
    assert not any(span.failed for span in mine)
    by_kind = {span.kind: span for span in mine if span.kind != "internal"}
    assert set(by_kind) == {"server", "producer", "consumer"}
    server, producer, consumer = by_kind["server"], by_kind["producer"], by_kind["consumer"]
    assert server.attributes == {
        "http.request.method": "POST",
        "http.route": "/what/fast",
        "http.response.status_code": 202,
        "url.path": "/what/fast",
        "url.scheme": "http",
    }
    message_id = producer.attributes["messaging.message.id"]
    assert consumer.attributes["messaging.message.id"] == message_id
    assert consumer.attributes["glimpse.image_hash"] == sha256(image)
    assert {span.attributes["messaging.operation.type"] for span in (producer, consumer)} == {
        "send",
        "process",
    }
    system = "gcp_pubsub" if stack.on_emulators else "glimpse"
    assert {span.attributes["messaging.system"] for span in (producer, consumer)} == {system}


def test_probes_and_scrapes_are_not_traced(stack: Stack, collector: Collector) -> None:
    for path in ("/health", "/ready", "/metrics"):
        assert stack.api.get(path).is_success
    stack.api.get("/what/status/" + "0" * 64)
    spans = collector.wait(lambda spans: any("/what/status" in span.name for span in spans))
    assert not {"GET /health", "GET /ready", "GET /metrics"} & {span.name for span in spans}


def test_image_continues_the_trace_of_its_client(stack: Stack, collector: Collector) -> None:
    image = picture(seed=2)
    traceparent = {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01"}
    stack.api.post("/what/fast", files={"img": ("p.jpg", image)}, headers=traceparent)
    stack.result(sha256(image))
    assert traces_of(stack, sha256(image)) == {TRACE}
    spans = collector.wait(complete(stack, TRACE, CLIENT_SPAN))
    top = [span for span in spans if span.trace == TRACE and span.parent == CLIENT_SPAN]
    assert [span.name for span in top] == ["POST /what/fast"]


def test_trace_that_the_client_does_not_record_is_not_exported(
    stack: Stack, collector: Collector
) -> None:
    """Messages and log lines of both services still carry the trace."""
    image, other, trace = picture(seed=3), picture(seed=4), TRACE[::-1]
    stack.api.post(
        "/what/fast",
        files={"img": ("p.jpg", image)},
        headers={"traceparent": f"00-{trace}-{CLIENT_SPAN}-00"},
    )
    stack.result(sha256(image))
    assert traces_of(stack, sha256(image)) == {trace}
    # Spans of a later image have arrived, so those of an earlier one would have, too.
    stack.upload(other)
    stack.result(sha256(other))
    (recorded,) = traces_of(stack, sha256(other))
    spans = collector.wait(complete(stack, recorded))
    assert trace not in {span.trace for span in spans}


def test_duplicate_delivery_is_in_the_same_trace(stack: Stack, collector: Collector) -> None:
    image = picture(seed=5)
    stack.upload(image)
    model = stack.result(sha256(image))["model"]
    (trace,) = traces_of(stack, sha256(image))
    spans = collector.wait(complete(stack, trace))
    (producer,) = [span for span in spans if span.trace == trace and span.kind == "producer"]
    attributes = {
        "image_hash": sha256(image),
        "model": model,
        "tenant": "public",
        "traceparent": f"00-{trace}-{producer.id}-01",
    }
    message = {"messageId": "again", "attributes": attributes, "data": ""}
    envelope = {"subscription": "projects/p/subscriptions/duplicates", "message": message}
    answer = httpx.post(
        f"http://127.0.0.1:{stack.worker_port}/generate_annotations",
        content=json.dumps(envelope),
        # The trace is another, as from Cloud Run.
        headers={"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01", **stack.push_headers()},
        timeout=60,
        verify=NO_TLS,
    )
    assert answer.status_code == 204
    spans = collector.wait(lambda spans: any("duplicates" in span.name for span in spans))
    below = tree(spans, trace, producer.id)[("glimpse-worker", "process duplicates")]
    # The worker may start to read the image before its claim is refused.
    claimed = ("glimpse-worker", "claim record")
    assert {claimed} <= set(below) <= {claimed, ("glimpse-worker", "read image")}
    (duplicate,) = [span for span in spans if span.name == "process duplicates"]
    assert duplicate.links == (TRACE,)


# --- Deliveries that fail -------------------------------------------------------------------------


def test_deliveries_and_dead_letter_are_in_the_trace_of_the_image(
    tmp_path: Path, colour_bundle: Path
) -> None:
    with Collector() as collector:
        settings = {**exporting_to(collector.url), "DELIVERY_ATTEMPTS": 3}
        with Stack(tmp_path, colour_bundle, **settings) as stack:
            # A worker without the model of the API refuses every delivery.
            stack.stop("worker")
            other = write_colour_bundle(tmp_path / "other", name="other")
            stack.environment["MODEL_URI"] = str(other)
            stack.start("worker")
            image = picture(seed=1)
            stack.upload(image)
            assert stack.result(sha256(image))["status"] == "error"
            (trace,) = traces_of(stack, sha256(image))
            spans = collector.wait(lambda spans: any(span.name == DEAD_LETTER for span in spans))
    deliveries = [span for span in spans if span.name == DELIVERY]
    assert {span.trace for span in spans if span.kind == "consumer"} == {trace}
    attempt = "messaging.gcp_pubsub.message.delivery_attempt"
    assert sorted(span.attributes[attempt] for span in deliveries) == [1, 2, 3]
    assert all(span.failed for span in deliveries)
    assert {span.attributes["error.type"] for span in deliveries} == {"ModelUnavailable"}
    (letter,) = [span for span in spans if span.name == DEAD_LETTER]
    assert not letter.failed
    assert tree(spans, trace, letter.id) == {
        ("glimpse-worker", "keep dead letter"): {},
        ("glimpse-worker", "fail record"): {},
    }


def test_reconciled_image_starts_a_new_trace(tmp_path: Path, colour_bundle: Path) -> None:
    with Collector() as collector:
        # Long enough for a new message to arrive before the next one is published.
        settings = {**exporting_to(collector.url), **with_constants(STALE_SECONDS=5)}
        with Stack(tmp_path, colour_bundle, **settings) as stack:
            stack.stop("queue")
            stack.upload(picture(seed=1))
            # The message is lost with its queue.
            for file in (stack.folder / "data").glob("queue.db*"):
                file.unlink()
            stack.stop("api")
            stack.stop("worker")
            stack.start("worker", "api")
            url = f"http://127.0.0.1:{stack.worker_port}/reconcile"
            ours = {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01", **stack.push_headers()}

            def republished() -> bool:
                return bool(
                    httpx.post(url, headers=ours, timeout=60, verify=NO_TLS).json()["republished"]
                )

            until(republished, "the record is stale")
            stack.start("queue")
            stack.result(sha256(picture(seed=1)))
            spans = collector.wait(lambda spans: any(span.name == DELIVERY for span in spans))
    (record,) = [span for span in spans if span.name == "reconcile record"]
    assert record.trace != TRACE
    assert record.links == (TRACE,)
    below = tree(spans, record.trace, record.id)
    assert ("glimpse-worker", DELIVERY) in names(below)
    assert "POST /reconcile" in {span.name for span in spans if span.trace == TRACE}


# --- Collectors that fail -------------------------------------------------------------------------


def test_stopping_service_exports_its_last_spans(tmp_path: Path, colour_bundle: Path) -> None:
    with Collector() as collector:
        settings = {**exporting_to(collector.url), "OTEL_BSP_SCHEDULE_DELAY": 3_600_000}
        with Stack(tmp_path, colour_bundle, **settings) as stack:
            image = picture(seed=1)
            stack.upload(image)
            stack.result(sha256(image))
            assert not collector.spans
            for name in ("queue", "api", "worker"):
                assert stack.stop(name) in (0, -15)
            (trace,) = traces_of(stack, sha256(image))
            assert tree(collector.spans, trace) == expected(stack)


@pytest.fixture(params=["no listener", "no response", "no credentials", "no number"])
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, object]]:
    """Settings with which the export fails."""
    if request.param == "no credentials":
        none = tmp_path / "none"
        yield {"TRACES": "gcp", "NO_GCE_CHECK": "true", "CLOUDSDK_CONFIG": none, "HOME": none}
    elif request.param == "no number":
        yield {"TRACES": "otlp", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "few"}
    elif request.param == "no listener":
        yield exporting_to(f"http://127.0.0.1:{free_port()}")
    else:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            # Longer than a stop may take, and longer than `Stack.stop` waits.
            yield {**exporting_to(url), "OTEL_EXPORTER_OTLP_TIMEOUT": 600}


def test_services_work_without_a_collector(
    tmp_path: Path, colour_bundle: Path, broken: dict[str, object]
) -> None:
    with Stack(tmp_path / "stack", colour_bundle, **broken) as stack:
        images = [picture(seed=n) for n in range(20)]
        assert {stack.upload(image).status_code for image in images} == {202}
        results = stack.results(map(sha256, images))
        assert {result["status"] for result in results.values()} == {"success"}
        # Unsent spans do not delay the stop. `Stack.stop` would kill a process, with status -9.
        assert {stack.stop(name) for name in ("queue", "api", "worker")} <= {0, -15}
        if "OTEL_EXPORTER_OTLP_ENDPOINT" not in broken:
            assert '"traces are off"' in stack.log("api")


# --- Logs -----------------------------------------------------------------------------------------


def test_no_span_is_exported_with_traces_off(tmp_path: Path, colour_bundle: Path) -> None:
    with Collector() as collector:
        settings = {**exporting_to(collector.url), "TRACES": "off"}
        with Stack(tmp_path, colour_bundle, **settings) as stack:
            stack.upload(picture(seed=1))
            stack.result(sha256(picture(seed=1)))
        assert not collector.spans


def test_log_lines_of_both_services_name_the_trace_for_cloud_logging(
    tmp_path: Path, colour_bundle: Path
) -> None:
    """The log lines about an image have its trace even if no span is exported."""
    with Stack(tmp_path, colour_bundle, GOOGLE_CLOUD_PROJECT="a-project") as stack:
        image = picture(seed=1)
        stack.upload(image)
        stack.result(sha256(image))
        (trace,) = traces_of(stack, sha256(image))
        for service, message in (("api", "accepted"), ("worker", "classified")):
            lines = logged(stack, service, sha256(image))
            (line,) = [line for line in lines if line["message"] == message]
            assert line["service"] == service
            assert line["severity"] == "INFO"
            name = f"projects/a-project/traces/{trace}"
            assert line["logging.googleapis.com/trace"] == name
            assert len(line["logging.googleapis.com/spanId"]) == 16
            assert line["logging.googleapis.com/trace_sampled"] is False
