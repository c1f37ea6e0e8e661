"""Fixtures that every suite may use."""

from pathlib import Path

import pytest

from tests.support.bundles import write_colour_bundle


@pytest.fixture(scope="session")
def colour_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, tiny model bundle that names a picture's dominant colour."""
    return write_colour_bundle(tmp_path_factory.mktemp("bundles") / "colours")
