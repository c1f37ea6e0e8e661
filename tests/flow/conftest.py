"""Fixtures of the flow suite."""

from collections.abc import Iterator
from pathlib import Path

import pytest

# Each test waits for several processes to start, which takes up to 30 s each on a busy machine.
SECONDS = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set the timeout of the tests in this folder, unless a test has its own."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SECONDS))


@pytest.fixture(scope="module")
def emulator_namespace(
    emulator_addresses: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Settings for a stack on the shared emulators, separate from other modules."""
    yield from _namespace(emulator_addresses, tmp_path_factory)


@pytest.fixture
def own_namespace(
    emulator_addresses: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Settings for a stack on the shared emulators, separate from other tests."""
    yield from _namespace(emulator_addresses, tmp_path_factory)


def _namespace(
    addresses: dict[str, str], folders: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A namespace with its own storage emulator.

    For each upload, that emulator writes the metadata of all its objects, those of other tests
    included. It starts in a tenth of a second.
    """
    from tests.support import emulators

    with emulators.running_storage(folders.mktemp("storage")) as url:
        namespace = emulators.own_namespace({**addresses, "STORAGE_EMULATOR_HOST": url})
        yield namespace
        emulators.delete_subscriptions(namespace)
