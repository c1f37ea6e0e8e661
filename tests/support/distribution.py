"""How a run spreads over several pytest-xdist workers, and what the workers share.

`make test` starts three workers for two cores. Each rule holds for one process as well.
"""

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_WORKERS = 8  # each may run a service's three processes, and all share one set of emulators
# The order of the folders: what is quick and says most comes first. Then what is long, so that no
# worker begins it when the others have nothing left: `browser` is one unit of work, and within
# `flow` the longest come first. The units of `contract` are short.
ORDER = ("unit", "terraform", "docs", "process", "browser", "flow", "contract")
BACKENDS = re.compile(r"\[(?:.*-)?(embedded|emulator|firestore|gcp)\b")
FOLDER = "GLIMPSE_TEST_RUN"  # names the folder that the workers of one run share


# --- Which worker runs which test ----------------------------------------------------------------


def workers() -> int:
    """How many workers `-n auto` starts: three for two cores that this process may use.

    Tests of whole services wait for a third of their time.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return min(cores + cores // 2, MOST_WORKERS)


def unit_of_work(nodeid: str) -> str:
    """The tests with the same unit of work run on one worker, one after another.

    A file of unit tests is one unit: handing tests out one by one costs more than they do. So is a
    file whose tests share a stack; with several backends, each backend is one. Other tests are
    units of their own.
    """
    file, _, _ = nodeid.partition("::")
    if folder(file) in ("unit", "terraform", "docs"):
        return file
    if folder(file) == "contract" or _shares_a_stack(file):
        backend = BACKENDS.search(nodeid)
        return f"{file}[{backend[1]}]" if backend else file
    return nodeid


def folder(nodeid: str) -> str:
    parts = nodeid.split("/")
    return parts[1] if len(parts) > 2 and parts[0] == "tests" else ""


def _shares_a_stack(file: str) -> bool:
    if file not in _sharing:
        _sharing[file] = 'scope="module"' in (ROOT / file).read_text(encoding="utf-8")
    return _sharing[file]


_sharing: dict[str, bool] = {}


def scheduler(config: pytest.Config, log: Any) -> Any:
    """An xdist scheduler that hands out units of work in the order in which they were collected.

    It sets a private method: the documented way, groups by mark and `--dist loadgroup`, would add
    the group to the name of every test.
    """
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False
    scheduling = LoadScopeScheduling(config, log)
    scheduling._split_scope = unit_of_work
    return scheduling


def ordered(items: list[pytest.Item]) -> list[pytest.Item]:
    """`items` by `ORDER`. The sort is stable, so that each file's own order stays."""

    def rank(item: pytest.Item) -> tuple[int, float]:
        where = folder(item.nodeid)
        timeout = item.get_closest_marker("timeout")
        # What a test may take says which tests are long.
        seconds = float(timeout.args[0]) if timeout and where == "flow" else 0.0
        return ORDER.index(where) if where in ORDER else len(ORDER), -seconds

    return sorted(items, key=rank)


# --- What the workers share ----------------------------------------------------------------------


def is_worker() -> bool:
    return "PYTEST_XDIST_WORKER" in os.environ


def share_of(numbers: range) -> range:
    """The part of `numbers` that no other worker takes."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return numbers[number % count :: count]


class Run:
    """One worker's part in a run. `folder` is the same for all workers of the run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened = ExitStack()

    def shared(
        self, name: str, opener: Callable[[Path], AbstractContextManager[dict[str, str]]]
    ) -> dict[str, str]:
        """What `opener` gives, opened once a run and not once a worker.

        `opener` takes a folder to work in. The first worker that asks opens it. It stays open
        until each worker that asked has called `close`.
        """
        state, value = self._folder / f"{name}.json", {}
        with self._locked(f"{name}.lock"):
            if state.exists():
                value, users = json.loads(state.read_text())
            else:
                home = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))
                users = f"{home.name}.users"
                opening = opener(home)
                value = opening.__enter__()
                state.write_text(json.dumps([value, users]))
                self._opened.push(opening)
                self._opened.callback(self._wait_for_users, name, users)
            self._opened.enter_context(self._locked(users, fcntl.LOCK_SH))
        return value

    def close(self) -> None:
        """Close what this worker has opened, once no other worker uses it."""
        self._opened.close()

    def _wait_for_users(self, name: str, users: str) -> None:
        with self._locked(f"{name}.lock"):
            (self._folder / f"{name}.json").unlink()  # a worker that asks from now on opens another
        with self._locked(users):
            pass

    @contextmanager
    def turn(self, *, exclusive: bool) -> Iterator[None]:
        """While one test runs. An exclusive one runs while no other worker runs any."""
        with ExitStack() as turn:
            # All pass the gate one by one: an exclusive test that waits keeps the next ones out.
            with self._locked("gate"):
                turn.enter_context(
                    self._locked("running", fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
                )
            yield

    @contextmanager
    def _locked(self, name: str, how: int = fcntl.LOCK_EX) -> Iterator[None]:
        with (self._folder / name).open("ab") as file:
            fcntl.flock(file, how)
            yield


def run() -> Run:
    """This process's part in the run that `begin` began."""
    return Run(Path(os.environ[FOLDER]))


def begin() -> None:
    """Call in the process that the user started, before it starts workers."""
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="glimpse-tests-")


def end() -> None:
    shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)
