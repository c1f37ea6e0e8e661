"""The commands of the make targets, as `make --dry-run` prints them without running them."""

import os
import re
import subprocess

import pytest

from tests.support.stack import ROOT


def recipe(target: str, *given: str) -> list[str]:
    """The lines that make would run for `target` if the installation is up to date."""
    done = subprocess.run(
        ["make", "--dry-run", "--old-file=setup", "--old-file=runtime", target, *given],
        cwd=ROOT,
        # Without the variables of a make that runs these tests, which would print folder names.
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("target", "command"),
    [
        # `exec` replaces the shell, so Glimpse receives Ctrl-C and sets the exit status.
        ("run", "exec .venv/bin/python -m compose run"),
        ("stop", ".venv/bin/python -m compose stop"),
        ("logs", "exec .venv/bin/python -m compose logs"),
        ("purge", ".venv/bin/python -m compose purge"),
        ("demo", ".venv/bin/python -m compose.demo"),
        ("smoke", ".venv/bin/python -m deploy.smoke http://127.0.0.1:8080"),
    ],
)
def test_make_runs_one_command(target: str, command: str) -> None:
    assert recipe(target) == [command]


def test_make_smoke_tests_the_given_url() -> None:
    (command,) = recipe("smoke", "URL=https://glimpse.example")
    assert command == ".venv/bin/python -m deploy.smoke https://glimpse.example"


def test_make_clean_deletes_installed_and_generated_files_but_no_data() -> None:
    delete, sweep = recipe("clean")
    program, option, *deleted = delete.split()
    assert (program, option) == ("rm", "-rf")
    makefile = (ROOT / "Makefile").read_text()
    installed = {*re.findall(r"^\w+ := (\.[\w-]+)$", makefile, re.MULTILINE), "benchmarks/.venvs"}
    assert {".venv", ".poetry", ".export-venv"} < installed
    caches = {".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".import_linter_cache"}
    assert set(deleted) == installed | caches
    folders = "app worker core models client compose deploy docs terraform tests benchmarks"
    assert sweep == f"find {folders} -name __pycache__ -type d -prune -exec rm -rf {{}} +"
