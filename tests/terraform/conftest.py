"""The tree, parsed once, and a copy of it to break."""

from pathlib import Path

import pytest

from terraform.tools.tree import Module, load
from tests.support.terraform import copy_of_tree


@pytest.fixture(scope="session")
def modules() -> dict[str, Module]:
    """Every module by its folder's name."""
    return {module.folder.name: module for module in load()}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the Terraform tree."""
    return copy_of_tree(tmp_path)
