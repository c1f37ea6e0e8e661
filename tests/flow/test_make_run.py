"""`make run`, `stop`, `logs` and `purge`: `python -m compose` with real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from compose.emulators import missing
from tests.support.emulators import free_addresses
from tests.support.images import COMPOSE
from tests.support.pictures import picture
from tests.support.requirements import EMULATORS
from tests.support.stack import ROOT, free_port

PATIENCE = 180.0  # seconds; emulators need a while on a busy machine


@dataclass
class Here:
    """One data folder with ports of its own, and the commands that concern it."""

    folder: Path
    environment: dict[str, str]

    @property
    def data(self) -> Path:
        return Path(self.environment["DATA_DIR"])

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")

    def call(self, command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "compose", command],
            cwd=ROOT,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    @contextmanager
    def running(self, **more: str) -> Iterator[subprocess.Popen[bytes]]:
        """`run`, once it says that it is ready."""
        with (self.folder / "output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "compose", "run"],
                cwd=ROOT,
                env={**self.environment, **more},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + PATIENCE
            while "ready: http://" not in self.output:
                assert process.poll() is None, self.output
                assert time.monotonic() < deadline, self.output
                time.sleep(0.1)
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def here(tmp_path: Path, colour_bundle: Path) -> Here:
    environment = {
        **{k: v for k, v in os.environ.items() if k in ("HOME", "LANG", "TMPDIR", "PATH")},
        "PYTHONUNBUFFERED": "1",
        "DATA_DIR": str(tmp_path / "data"),
        "MODEL_URI": str(colour_bundle),
        "API_PORT": str(free_port()),
        "WORKER_PORT": str(free_port()),
        **free_addresses(),
    }
    return Here(tmp_path, environment)


def bare(folder: Path) -> str:
    """A PATH on which there is neither Docker nor gcloud nor Java."""
    tools = folder / "tools"
    tools.mkdir()
    return str(tools)


def labels(here: Here) -> dict[str, object]:
    url = f"http://127.0.0.1:{here.environment['API_PORT']}/what/slow"
    answer = httpx.post(url, files={"img": ("p.jpg", picture(seed=5))}, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_bare_machine_is_embedded_and_the_commands_belong_to_it(here: Here) -> None:
    path = bare(here.folder)
    with here.running(PATH=path) as process:
        first = here.output.splitlines()[0]
        assert first.startswith("Backend: embedded, because it needs nothing but Python.")
        for missing in ("Docker is not installed.", "gcloud is not installed", "Java is not"):
            assert missing in first
        assert labels(here)["status"] == "success"

        second = here.call("run", PATH=path)
        assert second.returncode == 1
        assert f"already (process {process.pid})" in second.stderr

        with subprocess.Popen(
            [sys.executable, "-m", "compose", "logs"],
            cwd=ROOT,
            env=here.environment,
            stdout=subprocess.PIPE,
        ) as logs:
            assert logs.stdout is not None
            assert logs.stdout.readline().startswith(b"glimpse |")
            logs.kill()

        stopped = here.call("stop", PATH=path)
        assert stopped.stdout == "Stopped: processes.\n", stopped.stderr
        assert process.wait(timeout=30) == 0
    assert "Nothing was running." in here.call("stop", PATH=path).stdout
    after = here.call("logs", PATH=path)
    assert "glimpse | stopped" in after.stdout
    assert "not running" in after.stdout
    assert (here.data / "records.db").is_file()
    (here.data / "thesis.txt").touch()
    assert "thesis.txt" in here.call("purge", PATH=path).stdout
    assert [p.name for p in here.data.iterdir()] == ["thesis.txt"]
    (here.data / "thesis.txt").unlink()
    assert here.call("purge", PATH=path).returncode == 0
    assert not here.data.exists()
    assert here.call("logs", PATH=path).returncode == 1


def test_purge_stops_first(here: Here) -> None:
    with here.running(BACKEND="embedded") as process:
        assert here.call("purge", BACKEND="embedded").returncode == 0
        assert process.wait(timeout=30) == 0
    assert not here.data.exists()


@pytest.mark.parametrize("asked", ["compose", "emulator", "gcp"])
def test_what_cannot_run_says_why(here: Here, asked: str) -> None:
    refused = here.call("run", BACKEND=asked, PATH=bare(here.folder))
    assert refused.returncode == 1
    assert f"BACKEND={asked}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not here.data.exists()


def test_docker_engine_is_given_compose_yaml(here: Here) -> None:
    """A stand-in for Docker writes down what it is told; no engine is needed to see that."""
    path, told = Path(bare(here.folder)), here.folder / "told"
    docker = path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {told}\ncase "$*" in *ps*) echo 0123abcd;; esac\n')
    docker.chmod(0o755)

    def compose(command: str, asked: str = "") -> list[str]:
        """The calls of `docker compose`, without its options, that the command makes."""
        told.write_text("")
        done = here.call(command, PATH=str(path), BACKEND=asked)
        assert done.returncode == 0, done.stderr
        if command == "run":
            assert done.stdout.startswith("Backend: compose, because ")
            assert f"http://127.0.0.1:{here.environment['API_PORT']}/docs" in done.stdout
        calls = [line for line in told.read_text().splitlines() if line.startswith("compose ")]
        return [call.partition(f"--file {COMPOSE} ")[2] for call in calls if "--file" in call]

    up = "up --build --remove-orphans"
    assert compose("run") == compose("run", "compose") == [up]
    assert compose("logs")[-1] == "logs --follow --tail=200"
    assert compose("stop") == ["ps --all --quiet", "down"]
    assert compose("purge")[-1] == "down --volumes"
    # Whoever asks for processes leaves the containers alone.
    assert compose("stop", "embedded") == compose("purge", "emulator") == []


@pytest.mark.timeout(400)
def test_emulators_as_plain_processes(here: Here) -> None:
    """A photo the whole way, an emulator that dies, and Ctrl-C that leaves nobody behind."""
    if missing():
        EMULATORS.absent()
    # Docker aside, if there is one: its absence is not what this is about.
    with here.running(BACKEND="emulator") as process:
        assert here.output.startswith("Backend: emulator, because BACKEND asks for it.")
        assert labels(here)["status"] == "success"
        for name in ("datastore", "pubsub", "set-up", "worker", "api"):
            assert f"\n{name:<9} |" in here.output, name

        family = psutil.Process(process.pid).children(recursive=True)
        java = [child for child in family if child.name() == "java"]
        assert len(java) == 2
        pubsub = next(child for child in java if "pubsub" in " ".join(child.cmdline()))
        pubsub.kill()
        deadline = time.monotonic() + PATIENCE
        while "emulators set up again" not in here.output:
            assert time.monotonic() < deadline, here.output
            time.sleep(0.2)
        url = f"http://127.0.0.1:{here.environment['API_PORT']}/what/slow"
        while True:
            answer = httpx.post(url, files={"img": ("q.jpg", picture(seed=6))}, timeout=60)
            if answer.status_code == 200:
                break
            assert time.monotonic() < deadline, answer.text
            time.sleep(1)

        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        # A killed one is there until its parent, or who took that one's place, has taken note.
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
    lines = here.output.splitlines()
    assert lines[-1] == "glimpse   | stopped"
    assert any(line.startswith("scheduler |") for line in lines)
    assert here.call("purge", BACKEND="emulator").returncode == 0
    assert not here.data.exists()
