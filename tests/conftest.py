"""Fixtures that every suite may use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

# Before their import: the assertions of support code explain themselves like those of tests.
pytest.register_assert_rewrite("tests.support", "tests.abuse", "tests.chaos")

from tests.support.bundles import write_colour_bundle  # noqa: E402


@pytest.fixture(scope="session")
def colour_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, tiny model bundle that names a picture's dominant colour."""
    return write_colour_bundle(tmp_path_factory.mktemp("bundles") / "colours")


@pytest.fixture(scope="session")
def emulator_addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Google's emulators, running, shared by every test that does not stop them."""
    # Imported here: tests of what has nothing to do with Google load none of it.
    from tests.support.emulators import free_addresses, running_emulators

    addresses = free_addresses()
    with running_emulators(tmp_path_factory.mktemp("emulators"), addresses):
        yield addresses


@pytest.fixture(scope="session")
def storage_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The storage emulator by itself, for what needs buckets and no other part of Google's."""
    from tests.support.emulators import running_storage

    with running_storage(tmp_path_factory.mktemp("storage")) as url:
        yield url
