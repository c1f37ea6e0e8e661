"""`python -m app` as a process: its imports, start-up errors and shutdown."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from app import VERSION
from tests.support.pictures import picture
from tests.support.plain_http import NO_TLS
from tests.support.stack import free_port

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 60.0


def environment(tmp_path: Path, bundle: Path, **settings: object) -> dict[str, str]:
    values = {"DATA_DIR": tmp_path / "data", "MODEL_URI": bundle, **settings}
    paths = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    return paths | {name: str(value) for name, value in values.items()}


@contextmanager
def running(
    tmp_path: Path, bundle: Path, port: int, **settings: str
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "app"],
        cwd=tmp_path,  # without the `.env` of the developer
        env=environment(tmp_path, bundle, API_PORT=port, LOG_FORMAT="json", **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + TIMEOUT
        while True:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "not ready in time"
            try:
                if (
                    httpx.get(
                        f"http://127.0.0.1:{port}/ready", timeout=5, verify=NO_TLS
                    ).status_code
                    == 200
                ):
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_api_imports_neither_numpy_nor_onnx_runtime() -> None:
    code = (
        "import sys, app.__main__, core.backends.embedded\n"
        "unwanted = ('numpy', 'onnxruntime', 'torch', 'worker')\n"
        "print([name for name in unwanted if name in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"


def test_memory_stays_small_under_uploads(tmp_path: Path, colour_bundle: Path) -> None:
    port = free_port()
    with (
        running(tmp_path, colour_bundle, port) as process,
        httpx.Client(timeout=TIMEOUT, verify=NO_TLS) as client,
    ):
        for seed in range(20):
            image = picture(seed, size=(800, 600))
            response = client.post(f"http://127.0.0.1:{port}/api/v1/images", content=image)
            assert response.status_code == 202
        assert psutil.Process(process.pid).memory_info().rss < 120 * 10**6


def test_sigterm_answers_waiting_clients(tmp_path: Path, colour_bundle: Path) -> None:
    port = free_port()
    responses: list[httpx.Response] = []

    def wait() -> None:
        url = f"http://127.0.0.1:{port}/api/v1/images"
        headers = {"prefer": "wait=30"}
        responses.append(
            httpx.post(url, content=picture(), headers=headers, timeout=TIMEOUT, verify=NO_TLS)
        )

    with running(tmp_path, colour_bundle, port) as process:
        waiter = threading.Thread(target=wait)
        waiter.start()
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if '"accepted"' in line:
                break
        process.send_signal(signal.SIGTERM)
        waiter.join(TIMEOUT)
        output, _ = process.communicate(timeout=TIMEOUT)
    # A shutdown that waits for the client would take too long, and cancel it with 503.
    assert [response.status_code for response in responses] == [202]
    assert "Traceback" not in output
    assert "Application shutdown complete" in output
    assert process.returncode in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("trusted", "client"),
    [("", "127.0.0.1"), ("10.9.9.9", "127.0.0.1"), ("127.0.0.1", "203.0.113.9")],
)
def test_refused_keys_are_logged_with_the_forwarded_address(
    tmp_path: Path, colour_bundle: Path, trusted: str, client: str
) -> None:
    port = free_port()
    settings = {"API_KEYS": "required", "TRUSTED_PROXIES": trusted}
    with running(tmp_path, colour_bundle, port, **settings) as process:
        response = httpx.get(
            f"http://127.0.0.1:{port}/api/v1/usage",
            headers={"X-Forwarded-For": "203.0.113.9", "X-API-Key": "glp_no"},
            timeout=TIMEOUT,
            verify=NO_TLS,
        )
        assert response.status_code == 401
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=TIMEOUT)
    lines = [json.loads(line) for line in output.splitlines()]
    (refusal,) = [line for line in lines if line["message"] == "request refused"]
    assert refusal["client"] == client


def test_port_in_use_is_reported(tmp_path: Path, colour_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ended = run(environment(tmp_path, colour_bundle, API_PORT=port), tmp_path)
    assert ended.returncode != 0
    assert "address already in use" in ended.stdout
    assert str(port) in ended.stdout


def test_missing_bundle_is_reported(tmp_path: Path) -> None:
    ended = run(environment(tmp_path, tmp_path / "nowhere"), tmp_path)
    assert ended.returncode != 0
    assert "cannot start" in ended.stderr
    assert "nowhere is not a model bundle" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_invalid_settings_are_reported(tmp_path: Path, colour_bundle: Path) -> None:
    ended = run(environment(tmp_path, colour_bundle, API_PORT="many"), tmp_path)
    assert ended.returncode != 0
    assert "API_PORT" in ended.stderr
    assert "Traceback" not in ended.stderr


def run(environ: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app"],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def test_version_is_that_of_the_project() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == VERSION
