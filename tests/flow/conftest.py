"""Fixtures of the flow suite."""

from collections.abc import Iterator

import pytest


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
