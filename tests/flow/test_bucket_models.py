"""Models in a bucket: `MODEL_URI=gs://bucket/folder`, with real processes."""

import asyncio
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from core.bundles.bundle import read_bundle
from tests.support.buckets import fill_bundle
from tests.support.bundles import write_colour_bundle
from tests.support.emulators import running_storage
from tests.support.pictures import picture, sha256
from tests.support.plain_http import NO_TLS
from tests.support.scripted_storage import URI, scripted_storage
from tests.support.settings import isolated_settings
from tests.support.stack import Stack, free_port, until

RED = picture(1, (200, 30, 30), (16, 16))


@pytest.fixture
def bucket() -> str:
    return f"models-{secrets.token_hex(4)}"


@pytest.fixture(params=["embedded", "emulator"])
def environment(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """A backend and the address of its buckets."""
    if request.param == "embedded":
        yield {"STORAGE_EMULATOR_HOST": request.getfixturevalue("storage_url")}
    else:
        yield request.getfixturevalue("emulator_namespace")


def upload(environment: dict[str, str], bucket: str, folder: str, bundle: Path) -> str:
    host = environment["STORAGE_EMULATOR_HOST"]
    settings = isolated_settings(storage_emulator_host=host)
    return asyncio.run(fill_bundle(settings, bucket, folder, bundle))


def messages(stack: Stack, name: str) -> list[str]:
    return [line["message"] for line in stack.log_lines(name)]


def labelled(stack: Stack, image: bytes) -> dict[str, object]:
    assert stack.upload(image).status_code == 202
    result = stack.result(sha256(image))
    assert result["status"] == "success", result
    return result


def test_an_image_is_labelled_by_a_model_out_of_a_bucket(
    tmp_path: Path, colour_bundle: Path, environment: dict[str, str], bucket: str
) -> None:
    uri = upload(environment, bucket, "models/colours", colour_bundle)
    other = write_colour_bundle(tmp_path / "other", name="other")
    extra = upload(environment, bucket, "models/other", other)
    values = {**environment, "MODEL_URI": uri, "EXTRA_MODEL_URIS": f"{extra},{colour_bundle}"}
    stack = Stack(tmp_path / "stack", colour_bundle, **values)
    stack.names.remove("worker")
    with stack:
        # The API starts without weights.
        cache = tmp_path / "stack" / "data" / "model-cache"
        assert {path.name for path in cache.rglob("*") if path.is_file()} == {
            *("SHA256SUMS", "model.json", "labels.txt")
        }
        stack.start("worker")
        result = labelled(stack, RED)
        assert result["model"] == read_bundle(colour_bundle).identity
        annotations = result["annotations"]
        assert isinstance(annotations, list)
        assert annotations[0]["label"] == "red"
        # The worker downloads the other model's weights when a message needs them.
        assert len(list(cache.glob("*/model.json"))) == 2
        assert len(list(cache.glob("*/model.onnx"))) == 1
        assert messages(stack, "worker").count("bundle fetched") == 1
        # The next worker finds them in the cache.
        stack.kill("worker")
        stack.start("worker")
        labelled(stack, picture(2, (30, 30, 200), (16, 16)))
        assert messages(stack, "worker").count("bundle fetched") == 1
        assert messages(stack, "worker").count("model loaded") == 2


def test_service_waits_for_a_model_that_is_missing(
    tmp_path: Path, colour_bundle: Path, storage_url: str, bucket: str
) -> None:
    environment = {"STORAGE_EMULATOR_HOST": storage_url}
    uri = f"gs://{bucket}/models/colours"
    stack = Stack(tmp_path / "stack", colour_bundle, **environment, MODEL_URI=uri)
    with_worker, stack.names = stack.names, []
    with stack:
        for name in with_worker:
            stack.processes[name] = stack.launch(name)
        with _client(stack) as worker:
            missing = f"{uri} does not exist: there is no bucket {bucket}."
            _waits_for_it(worker, missing)
            # The worker is healthy, and reports why it is not ready. The API does not listen yet.
            until(lambda: "waiting for the model" in messages(stack, "api"), "the API waits")
            with pytest.raises(httpx.ConnectError):
                stack.api.get("/health")
            assert upload(environment, bucket, "models/colours", colour_bundle) == uri
            for name in ("worker", "api"):
                stack.wait_ready(name)
        assert labelled(stack, RED)["model"] == read_bundle(colour_bundle).identity
        reasons = [line["reason"] for line in stack.log_lines("worker") if "reason" in line]
        assert reasons.count(missing) == 1
        for name in ("worker", "api"):
            assert "Traceback" not in stack.log(name)


def test_service_waits_for_a_storage_that_is_down(tmp_path: Path, colour_bundle: Path) -> None:
    environment = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{free_port()}"}
    url = environment["STORAGE_EMULATOR_HOST"]
    with running_storage(tmp_path / "storage", url):
        uri = upload(environment, "models", "colours", colour_bundle)
    stack = Stack(tmp_path / "stack", colour_bundle, **environment, MODEL_URI=uri)
    with_worker, stack.names = stack.names, []
    with stack:
        for name in with_worker:
            stack.processes[name] = stack.launch(name)
        with _client(stack) as worker:
            _waits_for_it(
                worker, f"{uri}/SHA256SUMS cannot be fetched. The model storage does not answer."
            )
        with running_storage(tmp_path / "storage", url):
            for name in ("worker", "api"):
                stack.wait_ready(name)
        # The bucket is no longer needed.
        labelled(stack, RED)
        for name in ("worker", "api"):
            assert "Traceback" not in stack.log(name)


async def test_a_worker_stops_in_the_middle_of_a_download(
    tmp_path: Path, colour_bundle: Path
) -> None:
    async with scripted_storage(colour_bundle) as storage:
        storage.endless = True
        values = {"STORAGE_EMULATOR_HOST": storage.url, "MODEL_URI": URI}
        stack = Stack(tmp_path / "stack", colour_bundle, **values)
        stack.names = []
        with stack, _client(stack) as worker:
            stack.processes["worker"] = stack.launch("worker")
            await storage.reading.wait()
            # It serves before the model is available, and reports what it waits for.
            await asyncio.to_thread(until, lambda: _alive(worker), "the worker lives")
            answer = await asyncio.to_thread(worker.get, "/ready")
            assert (answer.status_code, answer.json()["checks"]["records"]) == (503, "ok")
            assert await asyncio.to_thread(stack.stop, "worker") in (0, -signal.SIGTERM)
        log = stack.log("worker")
        assert "Application shutdown complete" in log
        assert "Traceback" not in log
        assert not list((tmp_path / "stack").rglob("*.part"))


def _client(stack: Stack) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{stack.worker_port}", timeout=60, verify=NO_TLS)


def _alive(worker: httpx.Client) -> bool:
    try:
        return worker.get("/health").status_code == 204
    except httpx.TransportError:
        return False


def _waits_for_it(worker: httpx.Client, reason: str) -> None:
    until(lambda: _alive(worker), "the worker lives")
    until(lambda: worker.get("/ready").json()["checks"]["model"] == reason, reason)
    assert worker.get("/ready").status_code == 503
    assert worker.get("/health").status_code == 204
