"""Installs the locked packages into a virtual environment. The Makefile calls it.

    python3 compose/install.py runtime .venv
    python3 compose/install.py development .venv .poetry/requirements.txt

`runtime` installs what API, worker, queue and command line need. It reads poetry.lock itself:
Poetry would be a second environment of 80 MB. `development` adds the packages of a requirements
file. Needs only the standard library, because no package is installed yet.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "poetry.lock"
GROUPS, EXTRAS = ("main", "cli"), ("worker",)  # what `runtime` installs from poetry.lock
# Names in the environment: which lock its packages come from, and whether a supervisor uses it.
RUNTIME_MARK, DEVELOPMENT_MARK, IN_USE = ".runtime", ".complete", ".in-use"
_EXTRA = re.compile(r'extra == "([^"]+)"')
_TRUE, _FALSE = 'python_version >= "0"', 'python_version < "0"'
_BAR = 24  # characters
_LAST_LINES = 25  # lines of pip's output that are shown if it fails
TITLES = {
    "runtime": "Installing what Glimpse needs into {folder}: about 250 MB, usually under a minute.",
    "development": "Installing the development tools into {folder}: about 700 MB, usually one to "
    "three minutes.",
}


class CannotInstall(Exception):
    """The environment was not installed. The text tells the user why."""


def requirements(lock: Mapping[str, Any]) -> list[str]:
    """The locked packages of `GROUPS` and `EXTRAS`, as lines of a requirements file with hashes.

    https://pip.pypa.io/en/stable/topics/secure-installs/#hash-checking-mode
    """
    lines = []
    for package in lock["package"]:
        found = [group for group in package["groups"] if group in GROUPS]
        if not found:
            continue
        markers = [_marker(package.get("markers", ""), group) for group in found]
        condition = "" if "" in markers else " or ".join(f"({each})" for each in markers)
        hashes = " ".join(f"--hash={file['hash']}" for file in package["files"])
        pin = f"{package['name']}=={package['version']}"
        lines.append(f"{pin} ; {condition} {hashes}" if condition else f"{pin} {hashes}")
    return lines


def _marker(markers: str | Mapping[str, str], group: str) -> str:
    """The marker for a group. pip knows no extras here, so each is replaced by a constant."""
    text = markers if isinstance(markers, str) else markers.get(group, "")
    return _EXTRA.sub(lambda extra: _TRUE if extra[1] in EXTRAS else _FALSE, text)


def lock_digest() -> str:
    """Changes when the locked packages or the Python change."""
    return hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()


@contextmanager
def in_use(environment: Path) -> Iterator[None]:
    """Keep `install` from deleting the packages of an environment that this process runs in."""
    try:
        descriptor = os.open(environment / IN_USE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:  # not an environment that the user can change
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def install(kind: str, environment: Path, development: Path | None = None) -> None:
    """Bring the environment to the state of the lock. Raises CannotInstall."""
    mark = environment / RUNTIME_MARK
    digest = lock_digest()
    if not mark.is_file() or mark.read_text() != digest:
        _create(environment)
    elif kind == "runtime":
        mark.touch()
        return
    print(TITLES[kind].format(folder=_shown(environment)), flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if development is None:
            development = Path(folder) / "requirements.txt"
            development.write_text("\n".join(requirements(_read_lock())) + "\n", "utf-8")
        _pip(environment, "--require-hashes", "--no-deps", "--requirement", str(development))
    client = ("--no-deps", "--no-build-isolation", "--editable", str(ROOT / "client"))
    _pip(environment, *client)
    mark.write_text(digest)
    if kind == "development":
        (environment / DEVELOPMENT_MARK).touch()
    print(f"Installed in {time.monotonic() - began:.0f} s.", flush=True)


def _create(environment: Path) -> None:
    """Create an empty environment in place of this one."""
    try:
        descriptor = os.open(environment / IN_USE, os.O_RDWR)
    except FileNotFoundError:
        descriptor = -1
    try:
        if descriptor >= 0:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        done = _run([sys.executable, "-m", "venv", "--clear", str(environment)])
    except BlockingIOError:
        raise CannotInstall(
            f"Glimpse runs from {_shown(environment)}, and its packages have changed. "
            "Stop it with make stop, then repeat this command."
        ) from None
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    if done:
        raise CannotInstall(f"{sys.executable} cannot create {environment}:\n{done}")


def _run(argv: list[str]) -> str:
    """The output of a command that fails, or nothing."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def _pip(environment: Path, *arguments: str) -> None:
    """Run `pip install`, with a progress bar on a terminal. Raises CannotInstall."""
    argv = [str(environment / "bin" / "python"), "-m", "pip", "install"]
    argv += ["--disable-pip-version-check", "--progress-bar=off", *arguments]
    file = arguments[arguments.index("--requirement") + 1] if "--requirement" in arguments else ""
    pins = Path(file).read_text("utf-8").splitlines() if file else []
    total = sum(1 for pin in pins if "==" in pin)
    progress, last = Progress(total), ""
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        assert pip.stdout is not None
        lines = []
        for line in pip.stdout:
            lines.append(line)
            progress.read(line)
        last = "".join(lines[-_LAST_LINES:])
    progress.clear()
    if pip.returncode:
        raise CannotInstall(f"pip failed:\n{last}")


class Progress:
    """A progress bar for the output of `pip install` with `total` pinned packages."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._shows = sys.stdout.isatty() and total > 0

    def read(self, line: str) -> None:
        """Take a line of pip's output into account."""
        if line.startswith("Ignoring "):  # for another platform or Python
            self._total -= 1
        elif line.startswith("Collecting "):
            self._done += 1
            self._show(line.split()[1].partition("==")[0])
        elif line.startswith("Installing collected packages"):
            self._show("unpacking")

    def clear(self) -> None:
        if self._shows:
            print("\r\033[K", end="", flush=True)

    def _show(self, what: str) -> None:
        if self._shows:
            filled = round(_BAR * self._done / max(self._total, 1))
            bar = "━" * filled + " " * (_BAR - filled)
            print(f"\r\033[K  {bar} {self._done}/{self._total} {what}", end="", flush=True)


def _read_lock() -> dict[str, Any]:
    import tomllib

    return tomllib.loads(LOCK.read_text("utf-8"))


def _shown(environment: Path) -> str:
    path = environment.absolute()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - older versions run this as well
        sys.exit("Glimpse needs Python 3.11 or newer. Set PYTHON=/path/to/python3.")
    parser = argparse.ArgumentParser(description="Install the locked packages.")
    parser.add_argument("kind", choices=TITLES)
    parser.add_argument("environment", type=Path)
    parser.add_argument("requirements", type=Path, nargs="?")
    given = parser.parse_args()
    try:
        install(given.kind, given.environment, given.requirements)
    except CannotInstall as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("\nThe installation was interrupted. The next make run continues it.")


if __name__ == "__main__":
    main()
