"""`python -m compose` with a stand-in for Docker whose first build of the images does not end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.stack import ROOT, free_port

TIMEOUT = 60.0
# `info`, `compose version` and `ps` succeed, and there are no containers. `up` builds.
DOCKER = """#!/bin/sh
case " $* " in *" up "*) touch "$0.builds"; exec sleep 600;; esac
"""
# Ctrl-C while the packages load.
INTERRUPTED = """
import os, runpy, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # the test may run with it ignored
sys.meta_path.insert(0, Interrupting())
runpy.run_module(sys.argv[1], run_name="__main__")
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    docker = tmp_path / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "BACKEND": "compose",
        "DATA_DIR": str(tmp_path / "data"),
        "API_PORT": str(free_port()),
    }


def call(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "compose", command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@contextmanager
def building(folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "compose", "run"]
    with subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + TIMEOUT
            while not (folder / "docker.builds").exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


def test_stop_ends_a_build_of_the_images(tmp_path: Path, environment: dict[str, str]) -> None:
    with building(tmp_path, environment) as process:
        second = call("run", environment)
        assert second.returncode == 1
        (line,) = second.stderr.splitlines()
        assert line == (
            f"Glimpse is already running in {tmp_path / 'data'} (process {process.pid}). "
            "Stop it with make stop, or set DATA_DIR."
        )
        stopped = call("stop", environment)
        assert (stopped.returncode, stopped.stderr) == (0, "")
        assert stopped.stdout == "Stopped: docker compose.\n"
        assert process.wait(TIMEOUT) == -signal.SIGTERM
    assert call("stop", environment).stdout.startswith("Nothing was running: ")


@pytest.mark.parametrize(
    ("module", "package"), [("compose", "compose.commands"), ("compose.demo", "httpx2")]
)
def test_interrupt_while_the_packages_load_prints_no_traceback(
    environment: dict[str, str], module: str, package: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, package],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_failure_of_docker_is_one_sentence(tmp_path: Path, environment: dict[str, str]) -> None:
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\ncase " $* " in *" down "*) exit 17;; *" ps "*) echo 1;; esac\n')
    done = call("stop", environment)
    assert (done.returncode, done.stderr) == (1, "docker compose failed with status 17.\n")
