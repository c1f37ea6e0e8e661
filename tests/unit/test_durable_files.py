"""Files are written whole or not at all (P1)."""

import errno
import os
from pathlib import Path

import pytest

from core.backends.links import shared_secret
from core.durable_files import write_temporary, write_whole


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fsync fails, as it does on a disk that has become full."""

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_whole(b"new", tmp_path / "temporary", path)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_whole_if_the_system_writes_it_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, bytes(data)[:3]))
    write_temporary(bytearray(b"0123456789"), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"0123456789"


@pytest.mark.usefixtures("full_disk")
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        write_whole(b"new", tmp_path / "temporary", path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_rename_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(b"new", tmp_path / "temporary", path)
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_of_another_process_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "temporary"
    other.write_bytes(b"of another process")
    with pytest.raises(FileExistsError):
        write_temporary(b"new", other)
    assert other.read_bytes() == b"of another process"


@pytest.mark.usefixtures("full_disk")
def test_a_secret_that_cannot_be_stored_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        shared_secret(tmp_path / "link.key")
    assert list(tmp_path.iterdir()) == []
