"""Real processes over HTTP: the API, the worker and the queue, started, killed and restarted."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import httpx

from core.settings import REMOVED
from tests.support.distribution import share_of

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "worker": "worker",
    "queue": "core.backends.embedded.queue",
    "scheduler": "compose.scheduler",
    "api": "app",
}
SET_UP_SECONDS = 120.0
PATIENCE = 60.0  # seconds for a process to become ready, on a busy machine


# Below those that Linux, macOS and Windows give to connections: one of these could take a port
# before whoever is told of it listens there.
PORTS = range(20_000, 32_768)
_given: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens, and that nobody else in this process was given."""
    while True:
        port = secrets.choice(share_of(PORTS))
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port


def until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait until `condition` holds; fail where it does not."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {patience:g} s"
        time.sleep(0.05)


class Stack:
    """One Glimpse on free ports, its data and logs in `folder`.

    `settings` are environment variables over quick defaults for delivery, so that tests of retries
    take seconds. With `BACKEND=emulator` the queue is Pub/Sub's, and the stack sets it up.
    """

    def __init__(self, folder: Path, bundle: Path, **settings: object) -> None:
        assert not REMOVED.keys() & settings.keys()
        self.folder = folder
        self.api_port, self.worker_port = free_port(), free_port()
        self.environment = {
            **{k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR")},
            "PYTHONUNBUFFERED": "1",
            "DATA_DIR": str(folder / "data"),
            "API_PORT": str(self.api_port),
            "WORKER_PORT": str(self.worker_port),
            "MODEL_URI": str(bundle),
            "LOG_FORMAT": "json",
            "MAX_BACKOFF_SECONDS": "1",
            "LEASE_SECONDS": "2",
            "ACK_DEADLINE_SECONDS": "10",
            **{name: str(value) for name, value in settings.items()},
        }
        self.on_emulators = self.environment.get("BACKEND") == "emulator"
        # The embedded queue's process is its own scheduler.
        absent = "queue" if self.on_emulators else "scheduler"
        self.names = [name for name in MODULES if name != absent]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{self.api_port}", timeout=60)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            if self.on_emulators:
                self.set_up()
            self.start(*self.names)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.api.close()
        for name in list(self.processes):
            self.stop(name)

    def set_up(self) -> None:
        """Topics, subscriptions to this stack's worker, and bucket."""
        done = subprocess.run(
            [sys.executable, "-m", "compose.emulator_setup"],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=SET_UP_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, *names: str, patience: float = PATIENCE) -> None:
        """Start processes and wait until those with a port are ready."""
        for name in names:
            self.processes[name] = self.launch(name)
        for name in names:
            self.wait_ready(name, patience)

    def launch(self, name: str) -> "subprocess.Popen[bytes]":
        """The process, whose output goes to its log."""
        with self.log_file(name).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", MODULES[name]],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def port_of(self, name: str) -> int | None:
        """Where a process answers over HTTP, if it does."""
        return {"api": self.api_port, "worker": self.worker_port}.get(name)

    def wait_ready(self, name: str, patience: float = PATIENCE) -> None:
        port = self.port_of(name)
        if port is None:
            return
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self.processes[name].poll() is not None:
                break
            try:
                if httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"{name} did not become ready:\n{self.log(name)[-4000:]}")

    def kill(self, name: str) -> None:
        """`kill -9`: no goodbye."""
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def stop(self, name: str) -> int:
        """SIGTERM, as an orchestrator does; the exit status."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def log_file(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def log(self, name: str) -> str:
        return self.log_file(name).read_text(errors="replace")

    def make_key(self, *arguments: str) -> str:
        """A key of this stack's, made by the command that makes them; `api` uses it from now on."""
        done = subprocess.run(
            [sys.executable, "-m", "app.keys", "create", "test", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=SET_UP_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        key = done.stdout.strip()
        self.api.headers["X-API-Key"] = key
        return key

    def log_lines(self, name: str) -> list[dict[str, Any]]:
        """What was logged as JSON; a killed process may have left half a line, which is dropped."""
        lines = []
        for text in self.log(name).splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and "message" in line:
                lines.append(line)
        return lines

    def classifications(self, image_hash: str) -> int:
        """How often the worker says that it stored labels of the image, once it has said so.

        A result can be read a moment before the worker writes its line about it.
        """

        def lines() -> int:
            return sum(
                line["message"] == "classified" and line.get("image_hash") == image_hash
                for line in self.log_lines("worker")
            )

        until(lines, "the worker's line about the image")
        return lines()

    def insist(self, ask: Callable[[], httpx.Response]) -> httpx.Response:
        """Ask as a client does whose server comes back: until there is an answer, and no 503."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                answer = ask()
            except httpx.TransportError:
                pass
            else:
                if answer.status_code != 503:
                    return answer
            time.sleep(0.1)
        raise AssertionError(f"the API never came back:\n{self.log('api')[-4000:]}")

    def upload(self, image: bytes) -> httpx.Response:
        return self.api.post("/what/fast", files={"img": ("picture.jpg", image)})

    def result(self, image_hash: str, patience: float = PATIENCE) -> dict[str, object]:
        """The finished record's body."""
        return self.results([image_hash], patience)[image_hash]

    def results(
        self, hashes: Iterable[str], patience: float = PATIENCE
    ) -> dict[str, dict[str, object]]:
        """The bodies of all these images once every one is finished."""
        waiting, finished = set(hashes), {}
        deadline = time.monotonic() + patience
        while waiting and time.monotonic() < deadline:
            for image_hash in list(waiting):
                answer = self.api.get(f"/what/status/{image_hash}")
                if answer.status_code == 200:
                    finished[image_hash] = answer.json()
                    waiting.discard(image_hash)
            time.sleep(0.05)
        assert not waiting, f"{len(waiting)} images did not end within {patience:g} s"
        return finished
