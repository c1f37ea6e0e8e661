"""One supervisor for a data folder, when its process is killed, stopped or deaf."""

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
from compose.data_dir_lock import claimed
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(folder: Path, manner: str = "polite") -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", _HOLD, str(folder), manner]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "claimed\n"
            yield process
        finally:
            process.kill()


def test_there_is_one_and_it_is_named(tmp_path: Path) -> None:
    assert data_dir_lock.running(tmp_path / "data") is None
    with holder(tmp_path / "data") as process:
        assert data_dir_lock.running(tmp_path / "data") == process.pid
        with pytest.raises(data_dir_lock.AlreadyRunning, match=str(process.pid)):
            data_dir_lock.claimed(tmp_path / "data").__enter__()
        with pytest.raises(data_dir_lock.AlreadyRunning):
            data_dir_lock.purge(tmp_path / "data")


def test_a_killed_one_leaves_the_folder_free(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
        assert data_dir_lock.pid_file(tmp_path).read_text().strip() == str(process.pid)
        assert data_dir_lock.running(tmp_path) is None
        assert not data_dir_lock.stop(tmp_path, 1)
        with data_dir_lock.claimed(tmp_path):
            pass


@pytest.mark.parametrize("module", ["compose", "compose.supervisor"])
def test_it_is_said_in_one_sentence(tmp_path: Path, module: str) -> None:
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


def test_stop_ends_it(tmp_path: Path) -> None:
    assert not data_dir_lock.stop(tmp_path, 1)
    with holder(tmp_path) as process:
        assert data_dir_lock.stop(tmp_path, 30)
        assert process.wait() == -signal.SIGTERM


def test_stop_says_when_it_does_not_end(tmp_path: Path) -> None:
    with (
        holder(tmp_path, "deaf") as process,
        pytest.raises(data_dir_lock.DoesNotStop, match=str(process.pid)),
    ):
        data_dir_lock.stop(tmp_path, 0.5)
