"""Fixtures of the flow suite."""

import pytest


@pytest.fixture(scope="module")
def emulator_corner(emulator_addresses: dict[str, str]) -> dict[str, str]:
    """Settings for a stack on the shared emulators, apart from every other module's."""
    from tests.support.emulators import own_corner

    return own_corner(emulator_addresses)
