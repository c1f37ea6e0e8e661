"""`terraform fmt` for all of it, and `terraform test` for the modules that need no provider."""

import shutil
from pathlib import Path

import pytest

from terraform.tools.tree import TERRAFORM, Module, folders
from tests.support.terraform import terraform


def names_provider(folder: Path) -> bool:
    return any("required_providers" in file.read_text() for file in folder.glob("*.tf"))


ALONE = [folder.name for folder in folders() if not names_provider(folder)]
WITH_PROVIDER = [folder.name for folder in folders() if names_provider(folder)]


def test_the_format_is_terraforms_own() -> None:
    done = terraform(TERRAFORM, "fmt", "-check", "-recursive", "-diff")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_parts_that_can_be_tested_here_are_found(modules: dict[str, Module]) -> None:
    assert ALONE == ["names", "policy", "settings"]
    assert [name for name, module in modules.items() if not module.providers] == ALONE


@pytest.mark.parametrize("name", ALONE)
def test_a_module_without_a_provider(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TERRAFORM / "modules" / name, tmp_path / name))
    assert terraform(folder, "init", "-backend=false").returncode == 0
    done = terraform(folder, "test", "-no-color")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed" in done.stdout
    assert "0 passed" not in done.stdout


@pytest.mark.parametrize("name", ["names", "settings"])
def test_a_module_without_its_validations_fails(name: str, tmp_path: Path) -> None:
    """So that `expect_failures` expects something."""
    folder = Path(shutil.copytree(TERRAFORM / "modules" / name, tmp_path / name))
    variables = folder / "variables.tf"
    text = variables.read_text()
    start = text.index("  validation {")
    end = text.index("\n  }\n", start) + len("\n  }\n")
    variables.write_text(text[:start] + text[end:])
    terraform(folder, "init", "-backend=false")
    assert terraform(folder, "test").returncode == 1


@pytest.mark.parametrize("name", WITH_PROVIDER)
def test_the_others_mock_their_provider(name: str, modules: dict[str, Module]) -> None:
    """They run in CI on GitHub, and must not ask for credentials there."""
    folder = modules[name].folder
    for file in folder.glob("tests/*.tftest.hcl"):
        assert 'mock_provider "google" {' in file.read_text()
