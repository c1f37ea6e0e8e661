"""Runs Google's emulators as plain processes: `python -m compose.emulators`.

Java runs the Datastore and Pub/Sub emulators of an installed gcloud directly. The wrapper of gcloud
takes seconds to start and does not stop its child when it is killed. The Cloud Storage emulator is
gcp-storage-emulator, a development dependency.
"""

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from core.child_process import end_with_parent
from core.settings import Settings, load_settings

START_SECONDS = 120.0  # longest time until an emulator responds, on a busy machine
STOP_SECONDS = 10.0  # longest time until an emulator has stopped
# Names no entity. A lookup of it reads like any other.
ABSENT = b'{"keys": [{"path": [{"kind": "Check", "name": "absent"}]}]}'
# An emulator runs for minutes: the second compiler uses more CPU time than its code saves.
_JAVA = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


class EmulatorsMissing(Exception):
    """This machine cannot run the emulators. The text says what is missing."""


@dataclass(frozen=True)
class Check:
    """A request that a working process answers: a POST of JSON if it has a body, else a GET."""

    url: str
    body: bytes | None = None


@dataclass(frozen=True)
class Emulator:
    """One process. When it is ready, it responds to GET / with 200.

    `read` is the path and the body of a request that reads, if GET / does not show a hang.
    """

    name: str
    argv: tuple[str, ...]
    host: str
    port: int
    read: tuple[str, bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/"

    @property
    def check(self) -> Check:
        """A request that fails if the emulator hangs."""
        return Check(self.url + self.read[0], self.read[1]) if self.read else Check(self.url)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def sdk_root() -> Path | None:
    """The folder of the installed gcloud, or None."""
    executable = shutil.which("gcloud")
    root = os.environ.get("CLOUDSDK_ROOT_DIR") or (
        executable and Path(executable).resolve().parents[1]
    )
    return Path(root) if root and (Path(root) / "platform").is_dir() else None


def missing() -> list[str]:
    """A sentence for each requirement of the emulators that this machine does not meet."""
    sentences = []
    root = sdk_root()
    if root is None:
        sentences.append("gcloud is not installed: https://cloud.google.com/sdk/docs/install.")
    else:
        sentences += [
            f"The gcloud component {component} is missing: gcloud components install {component}."
            for component, jar in (
                ("cloud-datastore-emulator", _datastore_jar(root)),
                ("pubsub-emulator", _pubsub_jar(root)),
            )
            if jar is None
        ]
    if shutil.which("java") is None:
        sentences.append("Java is not installed. The emulators need version 11 or newer.")
    if importlib.util.find_spec("gcp_storage_emulator") is None:
        sentences.append("The Python package gcp-storage-emulator is not installed: make setup.")
    return sentences


def emulators(settings: Settings, folder: Path) -> list[Emulator]:
    """All three, at the addresses in `settings`, with data in `folder`. Raises EmulatorsMissing.

    The Pub/Sub emulator keeps topics and messages in memory only.
    """
    if sentences := missing():
        raise EmulatorsMissing(" ".join(sentences))
    root = sdk_root()
    assert root is not None
    return [
        _datastore(_datastore_jar(root), folder, *_address(settings.datastore_emulator_host)),
        _pubsub(_pubsub_jar(root), *_address(settings.pubsub_emulator_host)),
        storage_emulator(folder, settings.storage_emulator_host),
    ]


def storage_emulator(folder: Path, url: str) -> Emulator:
    """The Cloud Storage emulator at `url`, with data in `folder`. It needs only Python."""
    host, port = _address(url.partition("://")[2])
    data = (folder / "storage").absolute()  # the emulator accepts absolute paths only
    data.mkdir(parents=True, exist_ok=True)
    command = (sys.executable, "-m", "gcp_storage_emulator", "--data-dir", str(data))
    argv = (*command, "start", "--quiet", f"--host={host}", f"--port={port}")
    return Emulator("storage", argv, host, port)


def firestore_emulator(host: str, port: int) -> Emulator:
    """The Firestore emulator in Datastore mode. Raises EmulatorsMissing.

    For tests: this emulator locks entities, and the Datastore emulator aborts conflicts. Code that
    is correct on both does not depend on how the real database resolves conflicts.
    """
    root = sdk_root()
    folder = root / "platform" / "cloud-firestore-emulator" if root else None
    jar = folder / "cloud-firestore-emulator.jar" if folder else None
    if jar is None or not jar.is_file():
        component = "cloud-firestore-emulator"
        raise EmulatorsMissing(
            f"The gcloud component {component} is missing: gcloud components install {component}."
        )
    main = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"
    command = ("java", *_JAVA, "-Duser.language=en", "-cp", str(jar), main, "start")
    options = (f"--host={host}", f"--port={port}", "--database-mode=datastore-mode")
    return Emulator("firestore", (*command, *options), host, port)


class RunningEmulators:
    """A context in which emulators run. It waits until each one is ready."""

    def __init__(self, wanted: Iterable[Emulator], folder: Path) -> None:
        self.emulators = {emulator.name: emulator for emulator in wanted}
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self.start(*self.emulators)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *names: str) -> None:
        """Start these and wait until they are ready. Raises RuntimeError with the log."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            with self.log_file(name).open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    self.emulators[name].argv,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=end_with_parent,  # noqa: PLW1509 - it only calls prctl
                )
        deadline = time.monotonic() + START_SECONDS
        for name in names:
            while not self.emulators[name].is_ready():
                if self._processes[name].poll() is not None or time.monotonic() > deadline:
                    tail = self.log_file(name).read_text("utf-8", "replace")[-2000:]
                    raise RuntimeError(f"The {name} emulator did not start:\n{tail}")
                time.sleep(0.1)

    def stop(self, *names: str) -> None:
        """Stop these, or all. Kill those that do not stop in time."""
        stopping = [self._processes.pop(n) for n in (names or list(self._processes))]
        for process in stopping:
            process.terminate()
        for process in stopping:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self, name: str) -> None:
        """Send SIGKILL."""
        self._processes[name].kill()
        self._processes.pop(name).wait()

    def suspend(self, name: str) -> None:
        """Pause it: the kernel accepts connections, but it does not respond."""
        self._processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self._processes[name].send_signal(signal.SIGCONT)

    def ended(self) -> list[str]:
        """The emulators that were started and have ended without `stop`."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def log_file(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def _datastore(jar: Path | None, folder: Path, host: str, port: int) -> Emulator:
    # Imported here, so that `missing` does not load Google's libraries.
    from core.backends.google.endpoints import DEMO_PROJECT

    data = folder / "datastore"
    # The emulator recognizes its folder by this one. Its own command `create` takes another JVM.
    (data / "WEB-INF").mkdir(parents=True, exist_ok=True)
    main = "com.google.cloud.datastore.emulator.CloudDatastore"
    command = ("java", *_JAVA, "-cp", str(jar), main)
    start = ("start", f"--host={host}", f"--port={port}", "--consistency=1.0", str(data))
    # Its threads may block each other, and GET / still gets a response.
    read = (f"v1/projects/{DEMO_PROJECT}:lookup", ABSENT)
    return Emulator("datastore", (*command, *start), host, port, read)


def _pubsub(jar: Path | None, host: str, port: int) -> Emulator:
    argv = ("java", *_JAVA, "-jar", str(jar), f"--host={host}", f"--port={port}")
    return Emulator("pubsub", argv, host, port)


def _datastore_jar(root: Path) -> Path | None:
    jar = root / "platform" / "cloud-datastore-emulator" / "CloudDatastore.jar"
    return jar if jar.is_file() else None


def _pubsub_jar(root: Path) -> Path | None:
    jars = sorted(
        (root / "platform" / "pubsub-emulator" / "lib").glob("cloud-pubsub-emulator-*.jar")
    )
    return jars[-1] if jars else None


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


async def _serve(settings: Settings) -> int:
    from core.backends.google.provision import provision

    folder = settings.data_dir / "emulators"
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    with RunningEmulators(emulators(settings, folder), folder) as running:
        await provision(settings)
        for emulator in running.emulators.values():
            print(f"{emulator.name} emulator: {emulator.host}:{emulator.port}", flush=True)
        while not stop.is_set():
            if ended := running.ended():
                print(f"Ended: {', '.join(ended)}. See the logs in {folder}.", file=sys.stderr)
                return 1
            try:
                await asyncio.wait_for(stop.wait(), 1)
            except TimeoutError:
                continue
    return 0


def main() -> None:
    """Run all three and set them up, until SIGTERM or Ctrl-C. Logs are in DATA_DIR/emulators."""
    try:
        raise SystemExit(asyncio.run(_serve(load_settings())))
    except EmulatorsMissing as error:
        raise SystemExit(f"The emulators cannot run here. {error}") from None


if __name__ == "__main__":
    main()
