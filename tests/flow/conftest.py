"""Fixtures of the flow suite."""

from collections.abc import Iterator
from pathlib import Path

import pytest

# Each test waits for several processes to start, and a busy machine takes half a minute over one.
SECONDS = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a test here may take in all, unless it says so itself."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SECONDS))


@pytest.fixture(scope="module")
def emulator_corner(emulator_addresses: dict[str, str]) -> dict[str, str]:
    """Settings for a stack on the shared emulators, apart from every other module's."""
    from tests.support.emulators import own_corner

    return own_corner(emulator_addresses)


@pytest.fixture
def own_emulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Settings for a stack on emulators that nobody else uses.

    For tests that leave hundreds of messages: each is pushed again every second, by a thread of its
    own, also when the worker is gone, and that would take the machine from all tests that follow.
    """
    from tests.support.emulators import free_addresses, own_corner, running_emulators

    addresses = free_addresses()
    with running_emulators(tmp_path_factory.mktemp("own-emulators"), addresses):
        yield own_corner(addresses)
