"""Each image's command, run from exactly the files that the image would have.

Docker is not needed: the Dockerfile's own COPY, ENV, CMD and HEALTHCHECK are followed. What this
cannot show is that the packages install on the image's base; CI's image build does.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.images import Stage, stages, unpack
from tests.support.stack import free_port

STAGES = stages()


def interpreted(argv: list[str]) -> list[str]:
    assert argv[0] == "python"
    return [sys.executable, *argv[1:]]


@contextmanager
def container(
    stage: Stage, folder: Path, port: int, **more: str
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """The stage's command in its files and its environment, data and port apart."""
    work = unpack(stage, folder)
    environment = {
        **{k: v for k, v in stage.environment.items() if k not in ("PATH", "HOST")},
        "PATH": os.environ["PATH"],
        "DATA_DIR": str(folder / "data"),
        "PORT": str(port),
        **more,
    }
    with subprocess.Popen(interpreted(stage.command), cwd=work, env=environment) as process:
        try:
            yield process, environment
        finally:
            process.kill()


def healthy(stage: Stage, environment: dict[str, str]) -> bool:
    argv = interpreted(stage.health_command)
    return subprocess.run(argv, env=environment, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("name", ["api", "worker"])
def test_starts_is_healthy_and_stops(name: str, tmp_path: Path) -> None:
    stage, port = STAGES[name], free_port()
    with container(stage, tmp_path, port) as (process, environment):
        deadline = time.monotonic() + 60
        while not healthy(stage, environment):
            assert process.poll() is None, "it ended"
            assert time.monotonic() < deadline, "it did not become healthy"
            time.sleep(0.2)
        # Ready needs more: here the embedded backend and, for the worker, the model's weights.
        assert httpx.get(f"http://127.0.0.1:{port}/ready", timeout=30).status_code == 200
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    assert not healthy(stage, environment)


def test_development_image_has_what_the_tests_need(tmp_path: Path) -> None:
    work = unpack(STAGES["development"], tmp_path)
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/unit/test_settings.py"],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert collected.returncode == 0, collected.stdout + collected.stderr
    assert {"app", "compose", "core", "docs", "models", "tests", "worker", "README.md"} <= {
        path.name for path in work.iterdir()
    }
