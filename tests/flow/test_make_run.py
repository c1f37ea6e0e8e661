"""`make run`, `stop`, `logs` and `purge`: `python -m compose` with real processes."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from compose.emulators import missing
from core.settings import DEFAULT_BUNDLE
from tests.support.emulators import free_addresses
from tests.support.images import COMPOSE
from tests.support.pictures import picture
from tests.support.plain_http import NO_TLS
from tests.support.requirements import EMULATORS
from tests.support.stack import ROOT, free_port, until

TIMEOUT = 180.0  # seconds. Emulators start slowly on a busy machine


@dataclass
class Installation:
    """A data folder with its own ports, and the commands for it."""

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
            timeout=TIMEOUT,
            check=False,
        )

    @contextmanager
    def running(self, **more: str) -> Iterator[subprocess.Popen[bytes]]:
        """`run`, after it has reported that it is ready."""
        with (self.folder / "output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "compose", "run"],
                cwd=ROOT,
                env={**self.environment, **more},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + TIMEOUT
            while "ready: http://" not in self.output:
                assert process.poll() is None, self.output
                assert time.monotonic() < deadline, self.output
                time.sleep(0.1)
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def glimpse(tmp_path: Path, colour_bundle: Path) -> Installation:
    environment = {
        **{k: v for k, v in os.environ.items() if k in ("HOME", "LANG", "TMPDIR", "PATH")},
        "PYTHONUNBUFFERED": "1",
        "YES": "1",
        "DATA_DIR": str(tmp_path / "data"),
        "MODEL_URI": str(colour_bundle),
        "WORKER_CONCURRENCY": "1",
        "API_PORT": str(free_port()),
        "WORKER_PORT": str(free_port()),
        **free_addresses(),
    }
    return Installation(tmp_path, environment)


def empty_path(folder: Path) -> str:
    """A PATH without Docker, gcloud, and Java."""
    tools = folder / "tools"
    tools.mkdir()
    return str(tools)


def labels(glimpse: Installation) -> dict[str, object]:
    url = f"http://127.0.0.1:{glimpse.environment['API_PORT']}/what/slow"
    answer = httpx.post(url, files={"img": ("p.jpg", picture(seed=5))}, timeout=60, verify=NO_TLS)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_machine_with_only_python_runs_embedded_backend(glimpse: Installation) -> None:
    path = empty_path(glimpse.folder)
    with glimpse.running(PATH=path) as process:
        first = glimpse.output.splitlines()[0]
        assert first.startswith("Backend: embedded, because it needs only Python.")
        for missing in ("Docker is not installed.", "gcloud is not installed", "Java is not"):
            assert missing in first
        assert labels(glimpse)["status"] == "success"

        second = glimpse.call("run", PATH=path)
        assert second.returncode == 1
        assert (
            f"already running in {glimpse.data.resolve()} (process {process.pid})" in second.stderr
        )

        with subprocess.Popen(
            [sys.executable, "-m", "compose", "logs"],
            cwd=ROOT,
            env=glimpse.environment,
            stdout=subprocess.PIPE,
        ) as logs:
            assert logs.stdout is not None
            assert logs.stdout.readline().startswith(b"glimpse |")
            logs.kill()

        stopped = glimpse.call("stop", PATH=path)
        assert stopped.stdout == "Stopped: processes.\n", stopped.stderr
        assert process.wait(timeout=30) == 0
    nothing = glimpse.call("stop", PATH=path).stdout
    assert nothing == f"Nothing was running: no process uses {glimpse.data.resolve()}.\n"
    after = glimpse.call("logs", PATH=path)
    assert "glimpse | stopped" in after.stdout
    assert "Glimpse is not running." in after.stdout
    assert (glimpse.data / "records.db").is_file()
    (glimpse.data / "thesis.txt").touch()
    refused = glimpse.call("purge", PATH=path, YES="")
    assert (refused.returncode, refused.stdout) == (
        1,
        "Nothing was deleted. YES=1 deletes without a question.\n",
    )
    assert (glimpse.data / "records.db").is_file()
    assert "thesis.txt" in glimpse.call("purge", PATH=path).stdout
    assert [p.name for p in glimpse.data.iterdir()] == ["thesis.txt"]
    (glimpse.data / "thesis.txt").unlink()
    assert glimpse.call("purge", PATH=path).returncode == 0
    assert not glimpse.data.exists()
    assert glimpse.call("logs", PATH=path).returncode == 1


def test_stop_names_another_folder_as_the_reason(glimpse: Installation) -> None:
    """The API answers at this port, but its data is in another folder."""
    path, elsewhere = empty_path(glimpse.folder), str(glimpse.folder / "elsewhere")
    with glimpse.running(PATH=path):
        nothing = glimpse.call("stop", PATH=path, DATA_DIR=elsewhere).stdout
        assert f"no process uses {elsewhere}." in nothing
        assert f"listens on port {glimpse.environment['API_PORT']}." in nothing
        assert "set DATA_DIR to its folder." in nothing


def test_demo_finds_the_port_of_what_runs_in_the_folder(glimpse: Installation) -> None:
    path = empty_path(glimpse.folder)
    with glimpse.running(PATH=path, RATE_LIMIT="off"):
        environment = {k: v for k, v in glimpse.environment.items() if k != "API_PORT"}
        show = "from compose import demo; print(demo._api_url(demo.load_settings()))"
        done = subprocess.run(
            [sys.executable, "-c", show],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout == f"http://127.0.0.1:{glimpse.environment['API_PORT']}\n"


def test_json_format_gives_bare_lines(glimpse: Installation) -> None:
    path = empty_path(glimpse.folder)
    with glimpse.running(PATH=path, LOG_FORMAT="json") as process:
        assert labels(glimpse)["status"] == "success"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    logged = glimpse.call("logs", PATH=path).stdout.splitlines()
    assert logged.pop() == "Glimpse is not running. These are the last lines of its log."
    lines = [json.loads(line) for line in logged]
    assert {line["service"] for line in lines} == {"api", "worker", "queue", "glimpse"}
    assert all(line["message"] and line["severity"] and line["time"] for line in lines)
    classified = [line for line in lines if line["message"] == "classified"]
    assert [line["service"] for line in classified] == ["worker"]


def test_terminal_shows_one_short_line_for_an_image(glimpse: Installation) -> None:
    """A terminal gets less than the log, which `make logs` shows in full."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (50, 200))
    output = b""

    def shows(text: str) -> bool:
        nonlocal output
        while select.select([controller], [], [], 0)[0]:
            output += os.read(controller, 65_536)
        return text.encode() in output

    environment = {**glimpse.environment, "PATH": empty_path(glimpse.folder)}
    with subprocess.Popen(
        [sys.executable, "-m", "compose", "run"],
        cwd=ROOT,
        env=environment,
        stdout=terminal,
        stderr=terminal,
    ) as process:
        try:
            until(lambda: shows("make demo"), "the last line of the start")
            image_hash = str(labels(glimpse)["image_hash"])
            until(lambda: shows(image_hash[:12]), "the line of the image")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        assert shows("stopped")
    os.close(terminal)
    os.close(controller)
    lines = re.sub(r"\x1b\[\d*m", "", output.decode()).splitlines()
    url = f"http://127.0.0.1:{environment['API_PORT']}"
    at = next(number for number, line in enumerate(lines) if "ready: http" in line)
    assert lines[at].startswith(f"glimpse | ready: {url} is the page.")
    assert re.search(rf"GLIMPSE_URL={url} \S+/glimpse label PATH$", lines[at + 2])
    assert lines[at + 3].endswith(" make demo")
    about = [line for line in lines if image_hash[:8] in line]
    assert len(about) == 1
    assert re.fullmatch(rf"worker  \| {image_hash[:12]} \w+, [\d.]+ ms", about[0])
    log = (glimpse.data / "glimpse.log").read_text()
    assert f"image_hash={image_hash}" in log
    assert " request " in log and not any(" request " in line for line in lines)


def test_purge_stops_glimpse_first(glimpse: Installation) -> None:
    with glimpse.running(BACKEND="embedded") as process:
        assert glimpse.call("purge", BACKEND="embedded").returncode == 0
        assert process.wait(timeout=30) == 0
    assert not glimpse.data.exists()


@pytest.mark.parametrize("asked", ["compose", "emulator", "gcp"])
def test_backend_that_cannot_run_is_explained(glimpse: Installation, asked: str) -> None:
    refused = glimpse.call("run", BACKEND=asked, PATH=empty_path(glimpse.folder))
    assert refused.returncode == 1
    assert f"BACKEND={asked}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not glimpse.data.exists()


def test_docker_engine_runs_compose_yaml(glimpse: Installation) -> None:
    """A script in place of Docker records its arguments."""
    glimpse.environment["MODEL_URI"] = str(DEFAULT_BUNDLE)  # others are mounted
    path, calls_file = Path(empty_path(glimpse.folder)), glimpse.folder / "calls"
    docker = path / "docker"
    docker.write_text(
        f'#!/bin/sh\necho "$@" >> {calls_file}\ncase "$*" in *ps*) echo 0123abcd;; esac\n'
    )
    docker.chmod(0o755)

    def compose(command: str, asked: str = "") -> list[str]:
        """The calls of `docker compose`, without its options, that the command makes."""
        calls_file.write_text("")
        done = glimpse.call(command, PATH=str(path), BACKEND=asked)
        assert done.returncode == 0, done.stderr
        if command == "run":
            assert done.stdout.startswith("Backend: compose, because ")
            url = f"http://127.0.0.1:{glimpse.environment['API_PORT']}"
            assert f"The page will be at {url}\n" in done.stdout
        calls = [
            line for line in calls_file.read_text().splitlines() if line.startswith("compose ")
        ]
        return [call.partition(f"--file {COMPOSE} ")[2] for call in calls if "--file" in call]

    up = "up --build --remove-orphans"
    assert compose("run") == compose("run", "compose") == [up]
    assert compose("logs")[-1] == "logs --follow --tail=200"
    assert compose("stop") == ["ps --all --quiet", "down"]
    assert compose("purge")[-1] == "down --volumes"
    # The commands for processes do not affect containers.
    assert compose("stop", "embedded") == compose("purge", "emulator") == []


@pytest.mark.timeout(400)
def test_emulators_run_as_plain_processes(glimpse: Installation) -> None:
    """Classify an image, restart a killed emulator, and stop everything on Ctrl-C."""
    if missing():
        EMULATORS.absent()
    # BACKEND selects the emulators even if Docker is installed.
    with glimpse.running(BACKEND="emulator") as process:
        assert glimpse.output.startswith("Backend: emulator, because BACKEND selects it.")
        assert labels(glimpse)["status"] == "success"
        for name in ("datastore", "pubsub", "set-up", "worker", "api"):
            assert f"\n{name:<9} |" in glimpse.output, name

        family = psutil.Process(process.pid).children(recursive=True)
        java = [child for child in family if child.name() == "java"]
        assert len(java) == 2
        pubsub = next(child for child in java if "pubsub" in " ".join(child.cmdline()))
        pubsub.kill()
        deadline = time.monotonic() + TIMEOUT
        while "emulators set up again" not in glimpse.output:
            assert time.monotonic() < deadline, glimpse.output
            time.sleep(0.2)
        url = f"http://127.0.0.1:{glimpse.environment['API_PORT']}/what/slow"
        while True:
            answer = httpx.post(
                url, files={"img": ("q.jpg", picture(seed=6))}, timeout=60, verify=NO_TLS
            )
            if answer.status_code == 200:
                break
            assert time.monotonic() < deadline, answer.text
            time.sleep(1)

        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        # A killed process remains until its parent, or the parent's replacement, has reaped it.
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
    lines = glimpse.output.splitlines()
    assert lines[-1] == "glimpse   | stopped"
    assert any(line.startswith("scheduler |") for line in lines)
    assert glimpse.call("purge", BACKEND="emulator").returncode == 0
    assert not glimpse.data.exists()
