"""The lock of a data folder: it names unusable folders, and purge deletes only files of Glimpse."""

import fcntl
import os
import shutil
import threading
from pathlib import Path

import pytest

from compose import data_dir_lock
from tests.support.requirements import ORDINARY_USER


def test_unusable_data_dir_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "data"):
        with pytest.raises(
            data_dir_lock.UnusableDataDir, match=f"DATA_DIR={folder} cannot be used: "
        ):
            data_dir_lock.held(folder).__enter__()
        with pytest.raises(data_dir_lock.UnusableDataDir, match="Not a directory"):
            data_dir_lock.stop_holder(folder, 1)
    data_dir_lock.log_file(tmp_path).mkdir()
    with pytest.raises(data_dir_lock.UnusableDataDir, match=r"glimpse\.log: Is a directory"):
        data_dir_lock.opened_log(tmp_path).__enter__()


def test_data_dir_without_permission_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        ORDINARY_USER.absent()
    tmp_path.chmod(0o500)
    with pytest.raises(data_dir_lock.UnusableDataDir, match=r"data: Permission denied\.$"):
        data_dir_lock.held(tmp_path / "data").__enter__()


def test_purge_deletes_only_files_of_glimpse(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert data_dir_lock.purge(data) == []
    (data / "blobs" / "public").mkdir(parents=True)
    (data / "emulators").mkdir()
    for name in ("records.db", "records.db-wal", "queue.db", "queue.lock", "link.key",
                 "glimpse.log", "glimpse.log.1", "blobs/public/x"):  # fmt: skip
        (data / name).touch()
    (data / "thesis.txt").touch()
    assert data_dir_lock.purge(data) == ["thesis.txt"]
    assert [path.name for path in data.iterdir()] == ["thesis.txt"]
    (data / "thesis.txt").unlink()
    assert data_dir_lock.purge(data) == []
    assert not data.exists()


def test_lock_acquired_during_a_purge_is_visible(tmp_path: Path) -> None:
    """The purge deletes the file whose lock the process waits for."""
    data = tmp_path / "data"
    data.mkdir()
    with data_dir_lock.pid_file(data).open("a+") as purging:
        fcntl.flock(purging, fcntl.LOCK_EX)

        def purge() -> None:
            shutil.rmtree(data)
            purging.close()

        threading.Timer(0.3, purge).start()
        with data_dir_lock.held(data):
            assert data_dir_lock.holder(data) == os.getpid()


def test_full_disk_loses_only_lines_of_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data_dir_lock.log_file(tmp_path).symlink_to("/dev/full")
    with data_dir_lock.opened_log(tmp_path) as write:
        for number in range(1000):
            write(f"line {number}")
    assert capfd.readouterr() == ("", "")


def test_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_dir_lock, "LOG_BYTES", 1000)
    with data_dir_lock.opened_log(tmp_path) as write:
        for number in range(1000):
            write(f"line {number}, 100 % done")
    assert sum(path.stat().st_size for path in tmp_path.glob("glimpse.log*")) < 2100
    assert "line 999, 100 % done" in data_dir_lock.log_file(tmp_path).read_text()
