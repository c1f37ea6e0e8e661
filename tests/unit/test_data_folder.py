"""The data folder is private to the user who runs Glimpse."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.backends.data_folder import FILES, foreign_files, make_private, opened_folder
from core.errors import Unavailable


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """The umask is that of a machine whose users share their files."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_folder_is_private(tmp_path: Path) -> None:
    make_private(tmp_path / "a" / "data")
    assert mode(tmp_path / "a" / "data") == 0o700


@pytest.mark.parametrize("before", [0o755, 0o770, 0o701, 0o777])
def test_access_of_other_users_is_removed(tmp_path: Path, before: int) -> None:
    folder = tmp_path / "data"
    folder.mkdir(before)
    for name in ("records.db", "records.db-wal", "queue.lock", "glimpse.log.1", "key.secret.0f"):
        (folder / name).touch()
    make_private(folder)
    assert mode(folder) == 0o700


def test_folder_of_other_programs_keeps_its_mode(tmp_path: Path) -> None:
    """Such a folder is /tmp or a home folder."""
    folder = tmp_path / "shared"
    folder.mkdir(0o755)
    (folder / "thesis.txt").touch()
    with pytest.raises(Unavailable) as refused, opened_folder(folder):
        raise AssertionError("the folder is not private")
    assert "(thesis.txt)" in refused.value.detail
    assert f"chmod 700 {folder}" in refused.value.detail
    assert mode(folder) == 0o755
    folder.chmod(0o700)  # as the message says
    with opened_folder(folder):
        assert foreign_files(folder) == ["thesis.txt"]


def test_private_folder_may_contain_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(0o700)
    (folder / "notes").touch()
    make_private(folder)
    assert mode(folder) == 0o700


def test_files_of_glimpse_are_known(tmp_path: Path) -> None:
    for pattern in FILES:
        (tmp_path / pattern.replace("*", "-wal")).touch()
    assert foreign_files(tmp_path) == []
    (tmp_path / "records").touch()
    assert foreign_files(tmp_path) == ["records"]
