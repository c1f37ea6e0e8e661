"""Runs the command of each image with exactly the files of that image.

Docker is not needed: the test follows COPY, ENV, CMD and HEALTHCHECK of the Dockerfile. It does not
show that the packages install on the base image. CI's image build shows that.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.support.images import Stage, stages, unpack
from tests.support.plain_http import NO_TLS
from tests.support.stack import free_port, until

STAGES = stages()


def interpreted(argv: list[str]) -> list[str]:
    assert argv[0] == "python"
    return [sys.executable, *argv[1:]]


@contextmanager
def container(
    stage: Stage, folder: Path, port: int, **more: str
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """The command of a stage, with its files and environment, but another port and data folder."""
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


def ready(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/ready", timeout=30, verify=NO_TLS).status_code == 200


@pytest.mark.parametrize("name", ["api", "worker"])
def test_starts_is_healthy_and_stops(name: str, tmp_path: Path) -> None:
    stage, port = STAGES[name], free_port()
    with container(stage, tmp_path, port) as (process, environment):

        def alive() -> bool:
            assert process.poll() is None, "it ended"
            return healthy(stage, environment)

        until(alive, "it becomes healthy")
        # `/ready` needs more: the embedded backend and, for the worker, the weights of the model.
        # A service is healthy without them.
        until(partial(ready, port), "it becomes ready")
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
