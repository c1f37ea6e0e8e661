"""`python -m app.dead_letters`: its output and its errors."""

from pathlib import Path

import pytest

from tests.support.commands import run_module

COMMAND = "app.dead_letters"


def test_empty_list_prints_one_sentence(tmp_path: Path) -> None:
    shown = run_module(COMMAND, tmp_path, "list")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "No dead letters.\n", "")


def test_failing_store_leaves_standard_output_empty(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "records.db").write_bytes(b"no database" * 100)
    done = run_module(COMMAND, tmp_path, "list")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "file is not a database" in done.stderr
    assert "The records database does not answer." in done.stderr


@pytest.mark.parametrize("days", ["-1", "nan", "inf", "1e12", "many"])
def test_invalid_days_are_refused(days: str, tmp_path: Path) -> None:
    """A negative number would delete every dead letter."""
    done = run_module(COMMAND, tmp_path, "purge", f"--days={days}")
    assert done.returncode == 2
    assert "argument --days: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()
