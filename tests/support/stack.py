"""Real processes over HTTP: starts, kills, and restarts the API, the worker, and the queue."""

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import httpx

from core.backends import push_secret
from core.settings import REMOVED, Settings
from tests.support.distribution import share_of
from tests.support.plain_http import NO_TLS
from tests.support.process import VARIABLE
from tests.support.settings import isolated_settings

ROOT = Path(__file__).resolve().parents[2]
PRODUCTION = Path(__file__).with_name("production")  # hides packages that no image contains
MODULES = {
    "worker": "worker",
    "queue": "core.backends.embedded.queue",
    "scheduler": "compose.scheduler",
    "api": "app",
}
SET_UP_SECONDS = 120.0
TIMEOUT = 60.0  # seconds until a process is ready, on a busy machine

# Below the ports that Linux, macOS, and Windows assign to connections. A connection could get one
# of those before the process listens on it.
PORTS = range(20_000, 32_768)
_assigned: set[int] = set()


def free_port() -> int:
    """A free port of 127.0.0.1, which this function returns only once."""
    while True:
        port = secrets.choice(share_of(PORTS))
        if port in _assigned:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _assigned.add(port)
        return port


def until(condition: Callable[[], object], what: str, timeout: float = TIMEOUT) -> None:
    """Wait until `condition` is true. Fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout:g} s"
        time.sleep(0.05)


def is_ready(port: int) -> bool:
    """Whether a service answers, and is ready."""
    try:
        url = f"http://127.0.0.1:{port}/ready"
        return httpx.get(url, timeout=5, verify=NO_TLS).status_code == 200
    except httpx.TransportError:
        return False


class Stack:
    """The processes of one Glimpse on free ports, with data and logs in `folder`.

    `settings` are environment variables. The defaults make retries quick, and give the worker one
    classifier process, as on a machine with one core. With `BACKEND=emulator`, the stack creates
    topics and subscriptions on the Pub/Sub emulator.
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
            "WORKER_CONCURRENCY": "1",
            "MAX_BACKOFF_SECONDS": "1",
            "LEASE_SECONDS": "2",
            **{name: str(value) for name, value in settings.items()},
        }
        self.on_emulators = self.environment.get("BACKEND") == "emulator"
        # The embedded queue includes the scheduler.
        absent = "queue" if self.on_emulators else "scheduler"
        self.names = [name for name in MODULES if name != absent]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        url = f"http://127.0.0.1:{self.api_port}"
        self.api = httpx.Client(base_url=url, timeout=60, verify=NO_TLS)

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

    @property
    def settings(self) -> Settings:
        """The settings of the processes."""
        given = {name.lower(): text for name, text in self.environment.items()}
        values: dict[str, Any] = {n: given[n] for n in Settings.model_fields if n in given}
        return isolated_settings(**values)

    def set_up(self) -> None:
        """Create topics, the bucket, and subscriptions that push to this stack's worker.

        This process has loaded Google's libraries already. It does the work itself, unless
        constants differ. It uses a thread, because the event loop of a test may be running.
        """
        if VARIABLE in self.environment:
            self._set_up_in_a_process()
            return
        from compose.emulator_setup import set_up

        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, set_up(self.settings, SET_UP_SECONDS)).result()

    def _set_up_in_a_process(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", *self.starter(), "compose.emulator_setup"],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=SET_UP_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, *names: str, timeout: float = TIMEOUT) -> None:
        """Start processes and wait until those with a port are ready."""
        for name in names:
            self.processes[name] = self.launch(name)
        for name in names:
            self.wait_ready(name, timeout)

    def launch(self, name: str) -> "subprocess.Popen[bytes]":
        """Start a process that writes its output to its log."""
        with self.log_file(name).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *self.starter(), MODULES[name]],
                cwd=ROOT,
                env={**self.environment, "PYTHONPATH": str(PRODUCTION)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def starter(self) -> list[str]:
        """The module that runs a process, if a test changes constants."""
        return ["tests.support.process"] if VARIABLE in self.environment else []

    def port_of(self, name: str) -> int | None:
        """The port where a process serves HTTP, if it does."""
        return {"api": self.api_port, "worker": self.worker_port}.get(name)

    def wait_ready(self, name: str, timeout: float = TIMEOUT) -> None:
        port = self.port_of(name)
        if port is None:
            return
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.processes[name].poll() is not None:
                break
            if is_ready(port):
                return
            time.sleep(0.05)
        raise AssertionError(f"{name} did not become ready:\n{self.log(name)[-4000:]}")

    def push_headers(self) -> dict[str, str]:
        """The headers with which the local queue pushes to the worker."""
        secret = (Path(self.environment["DATA_DIR"]) / push_secret.FILE).read_bytes()
        return {"Authorization": f"Bearer {secret.hex()}"}

    def kill(self, name: str) -> None:
        """Send SIGKILL."""
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def stop(self, name: str) -> int:
        """Send SIGTERM, as an orchestrator does. Returns the exit status."""
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
        """Create a key with the command for keys. `api` uses it from now on."""
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
        """The JSON lines of the log, without a partial line of a killed process."""
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
        """How often the worker has logged that it classified the image, at least once.

        A result can be read shortly before the worker writes its log line.
        """

        def lines() -> int:
            return sum(
                line["message"] == "classified" and line.get("image_hash") == image_hash
                for line in self.log_lines("worker")
            )

        until(lines, "the worker's log line about the image")
        return lines()

    def retry(self, request: Callable[[], httpx.Response]) -> httpx.Response:
        """Repeat the request, as a client does, until there is a response other than 503."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            try:
                answer = request()
            except httpx.TransportError:
                pass
            else:
                if answer.status_code != 503:
                    return answer
            time.sleep(0.1)
        raise AssertionError(f"the API did not respond:\n{self.log('api')[-4000:]}")

    def upload(self, image: bytes) -> httpx.Response:
        return self.api.post("/what/fast", files={"img": ("picture.jpg", image)})

    def result(self, image_hash: str, timeout: float = TIMEOUT) -> dict[str, object]:
        """Wait for the result of an image."""
        return self.results([image_hash], timeout)[image_hash]

    def results(
        self, hashes: Iterable[str], timeout: float = TIMEOUT
    ) -> dict[str, dict[str, object]]:
        """Wait for the results of these images, by hash."""
        finished: dict[str, dict[str, object]] = {}
        deadline = time.monotonic() + timeout
        # One after another: most images end while the test waits for the first ones.
        for image_hash in dict.fromkeys(hashes):
            while (answer := self.api.get(f"/what/status/{image_hash}")).status_code != 200:
                assert time.monotonic() < deadline, (
                    f"{image_hash} has no result within {timeout:g} s, {len(finished)} others have"
                )
                time.sleep(0.05)
            finished[image_hash] = answer.json()
        return finished
