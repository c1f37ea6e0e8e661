"""One supervisor for a data folder; what stop and purge do to it."""

import fcntl
import os
import shutil
import threading
from pathlib import Path

import pytest

from compose import data_dir_lock
from tests.support.requirements import ORDINARY_USER


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "data"):
        with pytest.raises(
            data_dir_lock.UnusableFolder, match=f"DATA_DIR={folder} cannot be used: "
        ):
            data_dir_lock.claimed(folder).__enter__()
        with pytest.raises(data_dir_lock.UnusableFolder, match="Not a directory"):
            data_dir_lock.stop(folder, 1)
    data_dir_lock.log_file(tmp_path).mkdir()
    with pytest.raises(data_dir_lock.UnusableFolder, match=r"glimpse\.log: Is a directory"):
        data_dir_lock.opened_log(tmp_path).__enter__()


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        ORDINARY_USER.absent()
    tmp_path.chmod(0o500)
    with pytest.raises(data_dir_lock.UnusableFolder, match=r"data: Permission denied\.$"):
        data_dir_lock.claimed(tmp_path / "data").__enter__()


def test_purge_deletes_ours_and_nothing_else(tmp_path: Path) -> None:
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


def test_who_waits_while_it_is_purged_gets_a_folder_that_others_see(tmp_path: Path) -> None:
    """The lock it waited for was on a file that the purge has deleted since."""
    data = tmp_path / "data"
    data.mkdir()
    with data_dir_lock.pid_file(data).open("a+") as purging:
        fcntl.flock(purging, fcntl.LOCK_EX)

        def purge() -> None:
            shutil.rmtree(data)
            purging.close()

        threading.Timer(0.3, purge).start()
        with data_dir_lock.claimed(data):
            assert data_dir_lock.running(data) == os.getpid()


def test_a_full_disk_costs_lines_of_the_log_and_nothing_else(
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
