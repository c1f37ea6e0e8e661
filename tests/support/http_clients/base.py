"""The interface of the clients, and a runner for those in other languages."""

import base64
import itertools
import json
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tests.support.requirements import Requirement

PROGRAMS = Path(__file__).parent
JPEG = "image/jpeg"
File = tuple[str, bytes]  # name and content


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class HttpClient(ABC):
    """One client, which keeps its connections between calls unless `keeps_connections` is false."""

    keeps_connections: ClassVar[bool] = True
    sends_forms: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        """`folder` is for the files of this client. Skips the test if the client is missing."""
        self._files = Files(folder)

    @abstractmethod
    def form(self, url: str, field: str, files: Sequence[File]) -> Reply:
        """POST a form with these files, as the client encodes it."""

    @abstractmethod
    def post(self, url: str, data: bytes) -> Reply:
        """POST a raw body."""

    @abstractmethod
    def get(self, url: str) -> Reply:
        """GET a response to its end."""

    def close(self) -> None:  # noqa: B027 - not every client has something to close
        """Close the connections."""


def required(program: str) -> str:
    """The path of a program. Skips the test without it."""
    return shutil.which(program) or Requirement(program, f"install {program}", False).absent()


class Files:
    """Writes what a program uploads to a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._numbers = itertools.count()

    def write(self, data: bytes) -> Path:
        path = self._folder / f"{next(self._numbers)}.bin"
        path.write_bytes(data)
        return path


class Program(HttpClient):
    """A program in another language: one request a line, with fields between tabs.

    It reads `form URL FIELD NAME PATH [NAME PATH ...]`, `post URL PATH` and `get URL`, and writes a
    line with the status and the body as base64 for each of them.
    """

    def __init__(self, folder: Path, *command: str | Path) -> None:
        super().__init__(folder)
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def form(self, url: str, field: str, files: Sequence[File]) -> Reply:
        written = [part for name, data in files for part in (name, str(self._files.write(data)))]
        return self._call("form", url, field, *written)

    def post(self, url: str, data: bytes) -> Reply:
        return self._call("post", url, str(self._files.write(data)))

    def get(self, url: str) -> Reply:
        return self._call("get", url)

    def _call(self, *fields: str) -> Reply:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\t".join(fields) + "\n")
        self._process.stdin.flush()
        status, _, body = self._process.stdout.readline().strip().partition(" ")
        assert status.isdigit(), f"{fields[:2]}: {status} {body}"
        return Reply(int(status), base64.b64decode(body))

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
