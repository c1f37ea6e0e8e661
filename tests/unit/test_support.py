"""The support code of the suites: how tests are distributed, shared and skipped."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.distribution import Run, share_of, unit_of_work
from tests.support.requirements import EMULATORS, GIT, summary


@pytest.mark.parametrize(
    ("nodeid", "unit"),
    [
        ("tests/unit/test_jobs.py::test_a[x]", "tests/unit/test_jobs.py"),
        (
            "tests/flow/test_chaos.py::test_a[emulator]",
            "tests/flow/test_chaos.py::test_a[emulator]",
        ),
        # Its tests share a stack for each backend.
        ("tests/flow/test_pipeline.py::test_a[embedded]", "tests/flow/test_pipeline.py[embedded]"),
        (
            "tests/contract/test_job_store.py::test_a[firestore-3]",
            "tests/contract/test_job_store.py[firestore]",
        ),
    ],
)
def test_tests_that_share_a_stack_run_on_one_worker(nodeid: str, unit: str) -> None:
    assert unit_of_work(nodeid) == unit


def test_workers_draw_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    shares = []
    for name in ("gw0", "gw1", "gw2"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", name)
        shares.append(set(share_of(range(100))))
    assert set.union(*shares) == set(range(100))
    assert sum(map(len, shares)) == 100


class Opener:
    """Counts how many are open."""

    def __init__(self) -> None:
        self.opened = self.closed = 0

    @contextmanager
    def __call__(self, folder: Path) -> Iterator[dict[str, str]]:
        assert folder.is_dir()
        self.opened += 1
        yield {"number": str(self.opened)}
        self.closed += 1


def test_workers_share_what_the_first_has_opened_until_the_last_is_done(tmp_path: Path) -> None:
    opener, first, second = Opener(), Run(tmp_path), Run(tmp_path)
    assert first.shared("it", opener) == second.shared("it", opener) == {"number": "1"}
    closing = threading.Thread(target=first.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    assert opener.closed == 0
    second.close()
    closing.join()
    assert opener.closed == 1
    third = Run(tmp_path)
    assert third.shared("it", opener) == {"number": "2"}
    third.close()
    assert opener.closed == 2


def test_an_exclusive_test_runs_alone_and_is_not_passed_by(tmp_path: Path) -> None:
    events: list[str] = []
    first, waits, later = Run(tmp_path), Run(tmp_path), Run(tmp_path)

    def run(worker: Run, name: str, exclusive: bool) -> None:
        with worker.turn(exclusive=exclusive):
            events.append(name)

    with first.turn(exclusive=False), Run(tmp_path).turn(exclusive=False):
        threads = [threading.Thread(target=run, args=(waits, "exclusive", True))]
        threads[0].start()
        threads[0].join(0.1)
        threads.append(threading.Thread(target=run, args=(later, "ordinary", False)))
        threads[1].start()
        threads[1].join(0.1)
        assert events == []
    for thread in threads:
        thread.join()
    assert events == ["exclusive", "ordinary"]


def test_skipped_tests_are_summarised_in_one_line() -> None:
    assert summary([]) == ""
    reasons = ["Skipped: needs a", "Skipped: needs b", "Skipped: needs a"]
    assert summary(reasons) == "3 skipped: 2 x needs a; 1 x needs b"


def test_ci_requires_what_its_workflow_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="install gcloud with its components"):
        EMULATORS.absent()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="it is required where CI is set"):
        EMULATORS.absent()
    with pytest.raises(pytest.skip.Exception):
        GIT.absent()
