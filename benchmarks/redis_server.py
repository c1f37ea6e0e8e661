"""A private Redis server with a free port and a temporary folder."""

import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from benchmarks.processes import family_memory, stop
from tests.support.stack import free_port

DEFAULT, ALWAYS = "default", "always"
# How Redis stores data on disk. `default` is its behaviour without a configuration file.
PERSISTENCE = {
    DEFAULT: ["--appendonly", "no", "--save", "3600 1 300 100 60 10000"],
    ALWAYS: ["--appendonly", "yes", "--appendfsync", "always", "--save", ""],
}
START_SECONDS = 10.0


def require_redis() -> str:
    """The version of the server. Raises SystemExit with what to install."""
    if shutil.which("redis-server") is None:
        raise SystemExit(
            "The comparison needs redis-server, which is not on the PATH. Install it first: "
            "`apt-get install redis-server` (Debian, Ubuntu), `dnf install redis` (Fedora), "
            "`brew install redis` (macOS)."
        )
    said = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split("v=")[1].split()[0]


class RedisServer:
    """`persistence` is DEFAULT or ALWAYS."""

    def __init__(self, folder: Path, persistence: str) -> None:
        self._folder = folder
        self._persistence = persistence
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        with (self._folder / "redis.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["redis-server", *arguments, *PERSISTENCE[self._persistence]],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                    probe.sendall(b"PING\r\n")
                    if probe.recv(16) == b"+PONG\r\n":
                        return self
            except OSError:
                pass
            time.sleep(0.02)
        self.__exit__()
        raise RuntimeError((self._folder / "redis.log").read_text())

    def __exit__(self, *exception: object) -> None:
        stop(self._process)

    def memory(self) -> float:
        """Megabytes."""
        return family_memory(self._process.pid)
