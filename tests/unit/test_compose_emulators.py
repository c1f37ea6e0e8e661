"""Command lines of the emulators."""

from pathlib import Path

import pytest

from compose.emulators import storage_emulator


def test_storage_emulator_gets_an_absolute_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not accept a relative one, and `DATA_DIR` is relative by default."""
    monkeypatch.chdir(tmp_path)
    emulator = storage_emulator(Path(".data"), "http://127.0.0.1:9023")
    folder = emulator.argv[emulator.argv.index("--data-dir") + 1]
    assert folder == str(tmp_path / ".data" / "storage")
    assert Path(folder).is_dir()
