"""One process holds the lock of a data folder, until it is stopped or killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compose import data_dir_lock
from tests.support.stack import ROOT

_HOLD = """
import signal, sys, time
from pathlib import Path
from compose.data_dir_lock import held
if sys.argv[2] == "ignores":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(folder: Path, sigterm: str = "obeys") -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", _HOLD, str(folder), sigterm]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_one_process_holds_the_lock_and_is_named(tmp_path: Path) -> None:
    assert data_dir_lock.holder(tmp_path / "data") is None
    with holder(tmp_path / "data") as process:
        assert data_dir_lock.holder(tmp_path / "data") == process.pid
        with pytest.raises(data_dir_lock.AlreadyRunning, match=str(process.pid)):
            data_dir_lock.held(tmp_path / "data").__enter__()
        with pytest.raises(data_dir_lock.AlreadyRunning):
            data_dir_lock.purge(tmp_path / "data")


def test_killed_holder_releases_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
        assert data_dir_lock.pid_file(tmp_path).read_text().strip() == str(process.pid)
        assert data_dir_lock.holder(tmp_path) is None
        assert not data_dir_lock.stop_holder(tmp_path, 1)
        with data_dir_lock.held(tmp_path):
            pass


@pytest.mark.parametrize("module", ["compose", "compose.supervisor"])
def test_unusable_data_dir_is_one_line_of_output(tmp_path: Path, module: str) -> None:
    file = tmp_path / "file"
    file.touch()
    done = subprocess.run(
        [sys.executable, "-m", module, *(["run"] if module == "compose" else [])],
        cwd=ROOT,
        env={**os.environ, "BACKEND": "embedded", "DATA_DIR": str(file)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"DATA_DIR={file} cannot be used: {file}: File exists.\n"


def test_stop_ends_the_holder(tmp_path: Path) -> None:
    assert not data_dir_lock.stop_holder(tmp_path, 1)
    with holder(tmp_path) as process:
        assert data_dir_lock.stop_holder(tmp_path, 30)
        assert process.wait() == -signal.SIGTERM


def test_stop_reports_a_holder_that_does_not_end(tmp_path: Path) -> None:
    with (
        holder(tmp_path, "ignores") as process,
        pytest.raises(data_dir_lock.StopTimeout, match=str(process.pid)),
    ):
        data_dir_lock.stop_holder(tmp_path, 0.5)
