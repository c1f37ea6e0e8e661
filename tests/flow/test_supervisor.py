"""`make run`: one command, a log with names, restarts, and messages about used ports."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from compose.emulators import Check
from compose.programs import Plan, Program
from compose.supervisor import Supervisor
from tests.support import stack
from tests.support.plain_http import NO_TLS
from tests.support.signals import heard
from tests.support.stack import ROOT, free_port


@contextmanager
def supervisor(
    folder: Path, bundle: Path, output: int | None = None, **settings: object
) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor that writes to `log`, or to the descriptor `output`."""
    environment = {
        **os.environ,
        "DATA_DIR": str(folder / "data"),
        "MODEL_URI": str(bundle),
        "WORKER_CONCURRENCY": "1",
        **{name: str(value) for name, value in settings.items()},
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "compose.supervisor"],
            cwd=ROOT,
            env=environment,
            stdout=log if output is None else output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for(folder: Path, text: str, seconds: float = 60, log: str = "log") -> str:
    """Wait until the log contains `text`, and return the log."""
    deadline, content = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        if (folder / log).exists():
            content = (folder / log).read_text(errors="replace")
        if text in content:
            return content
        time.sleep(0.1)
    raise AssertionError(f"no {text!r} in:\n{content}")


def test_supervisor_runs_restarts_and_stops_every_process(
    tmp_path: Path, colour_bundle: Path
) -> None:
    ports = {"API_PORT": free_port(), "WORKER_PORT": free_port()}
    with supervisor(tmp_path, colour_bundle, **ports) as process:
        wait_for(tmp_path, "ready: http://127.0.0.1")
        for name in ("api", "worker", "queue", "glimpse"):  # readiness does not wait for the queue
            wait_for(tmp_path, f"{name:<7} |")
        children = psutil.Process(process.pid).children()
        assert len(children) == 3

        worker = next(c for c in children if c.cmdline()[-1] == "worker")
        worker.kill()
        wait_for(tmp_path, "worker ended (signal 9): restarting it")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not _answers(ports["WORKER_PORT"]):
            time.sleep(0.1)
        assert _answers(ports["WORKER_PORT"])

        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive
    assert "glimpse | stopped" in (tmp_path / "log").read_text()


def test_processes_end_with_a_killed_supervisor(tmp_path: Path, colour_bundle: Path) -> None:
    ports = {"API_PORT": free_port(), "WORKER_PORT": free_port()}
    with supervisor(tmp_path, colour_bundle, **ports) as process:
        wait_for(tmp_path, "ready: http://127.0.0.1")
        children = psutil.Process(process.pid).children()
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


def test_closed_output_does_not_stop_glimpse(tmp_path: Path, colour_bundle: Path) -> None:
    """The reader ends, as `head` or a closed terminal does. The output exceeds the buffer."""
    ports = {"API_PORT": free_port(), "WORKER_PORT": free_port()}
    read, write = os.pipe()
    with (
        heard(signal.SIGHUP),
        supervisor(tmp_path, colour_bundle, write, **ports) as process,
    ):
        os.close(write)
        wait_for(tmp_path / "data", "ready: http://127.0.0.1", log="glimpse.log")
        os.close(read)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{ports['API_PORT']}", timeout=30, verify=NO_TLS
        ) as client:
            for _ in range(100):
                # Each line of the log has the path.
                assert client.get(f"/{'0' * 3000}").status_code == 404
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGHUP)
        process.wait(timeout=30)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive
    log = (tmp_path / "data" / "glimpse.log").read_text()
    assert len(log) > 2 * 65_536
    assert "Application shutdown complete" in log
    assert "glimpse | stopped" in log


def test_polling_does_not_hide_the_reason_in_the_log(tmp_path: Path, colour_bundle: Path) -> None:
    missing = tmp_path / "bundle"
    ports = {"API_PORT": free_port(), "WORKER_PORT": free_port()}
    with supervisor(tmp_path, missing, **ports):
        stack.until(lambda: _polls(tmp_path) >= 4, "four requests for /ready")
        before = _polls(tmp_path)
        time.sleep(5)
        # At the first interval of 0.2 seconds, there would be 25.
        assert _polls(tmp_path) - before < 10
        assert f"{missing} is not a model bundle" in (tmp_path / "log").read_text()
        shutil.copytree(colour_bundle, missing)
        wait_for(tmp_path, "ready: http://127.0.0.1")


@pytest.mark.parametrize(("service", "setting"), [("api", "API_PORT"), ("worker", "WORKER_PORT")])
def test_port_in_use_is_named(
    tmp_path: Path, colour_bundle: Path, service: str, setting: str
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        ports = {"API_PORT": free_port(), "WORKER_PORT": free_port(), setting: taken}
        with supervisor(tmp_path, colour_bundle, **ports) as process:
            assert process.wait(timeout=30) == 1
    log = (tmp_path / "log").read_text()
    assert f"The {service} needs port {taken} on 127.0.0.1, but another program uses it." in log
    assert f"set {setting}" in log


def test_unknown_host_is_not_reported_as_a_port_in_use(tmp_path: Path, colour_bundle: Path) -> None:
    ports = {"API_PORT": 8080, "WORKER_PORT": free_port()}
    with supervisor(tmp_path, colour_bundle, HOST="nowhere.invalid", **ports) as process:
        assert process.wait(timeout=30) == 1
    log = (tmp_path / "log").read_text()
    assert "The api cannot listen on port 8080 of nowhere.invalid: " in log
    assert "Change HOST or API_PORT." in log
    assert "another program uses it" not in log


def test_supervisor_names_what_a_part_needs_to_restart(tmp_path: Path) -> None:
    """The environment was deleted, or a package was removed while Glimpse runs."""
    for argv, missing in (
        (("/no/such/python", "-m", "app"), "cannot start: /no/such/python: No such file"),
        ((sys.executable, "-c", "import no_such_package"), "No module named 'no_such_package'"),
    ):
        lines: list[str] = []
        plan = Plan("a plan", (Program("worker", argv),))
        supervisor = Supervisor(plan, 1, lines.append)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("compose.supervisor.RESTART_DELAYS", (0.01,))
            asyncio.run(supervisor.run())
        assert supervisor.failed
        last = lines[-1]
        assert last.startswith("glimpse | worker ends repeatedly (")
        assert missing in last
        assert "run make stop, make clean, then make run" in last


def test_process_that_hangs_is_restarted(tmp_path: Path) -> None:
    """One that is still starting is not."""
    port, seen = free_port(), tmp_path / "seen"
    server = (
        "import http.server, os, signal, time\n"
        f"seen = open({str(seen)!r}, 'a'); print(os.getpid(), file=seen, flush=True)\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        self.rfile.read(int(self.headers['Content-Length']))\n"
        "        self.send_response(200); self.end_headers()\n"
        "        print('checked', file=seen, flush=True)\n"
        f"slow = http.server.HTTPServer(('127.0.0.1', {port}), Handler)\n"
        "time.sleep(1.5)  # the port is open, and nothing responds\n"
        "slow.serve_forever()\n"
    )
    program = Program(
        "datastore",
        (sys.executable, "-c", server),
        check=Check(f"http://127.0.0.1:{port}/read", b"{}"),
    )
    lines: list[str] = []

    async def scenario() -> list[str]:
        supervisor = Supervisor(Plan("a plan", (program,)), 1, lines.append)
        task = asyncio.create_task(supervisor.run())
        try:
            first = await seen_lines(2)
            os.kill(int(first[0]), signal.SIGSTOP)
            await seen_lines(len(first) + 2, beyond="checked")
            # Not those of the end: on a slow machine, the process is killed then.
            return [line for line in lines if line.startswith("glimpse")]
        finally:
            supervisor.stop.set()
            await task

    async def seen_lines(number: int, beyond: str = "") -> list[str]:
        for _ in range(600):
            found = seen.read_text().split() if seen.exists() else []
            pids = [line for line in found if line != "checked"]
            if len(found) >= number and (not beyond or (len(pids) > 1 and found[-1] == beyond)):
                return found
            await asyncio.sleep(0.05)
        raise AssertionError(f"{seen} has {found}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compose.supervisor.CHECK_INTERVAL", 0.05)
        # Long enough for a response on a busy machine: three timeouts in a row are a hang.
        patch.setattr("compose.supervisor.CHECK_SECONDS", 1.0)
        patch.setattr("compose.supervisor.RESTART_DELAYS", (0.01,))
        shown = asyncio.run(scenario())
    assert shown == [
        "glimpse   | datastore does not respond: stopping it",
        "glimpse   | datastore did not stop in 1 s: killing it",
        "glimpse   | datastore ended (signal 9): restarting it in 0.01 s",
    ]


def test_invalid_setting_is_named(tmp_path: Path, colour_bundle: Path) -> None:
    with supervisor(tmp_path, colour_bundle, API_PORT="eighty") as process:
        assert process.wait(timeout=30) == 1
    assert "API_PORT" in (tmp_path / "log").read_text()


def _polls(folder: Path) -> int:
    """The number of requests for /ready in the log."""
    return (folder / "log").read_text(errors="replace").count(" path=/ready ")


def _answers(port: int) -> bool:
    try:
        return (
            httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5, verify=NO_TLS).status_code == 200
        )
    except httpx.TransportError:
        return False
