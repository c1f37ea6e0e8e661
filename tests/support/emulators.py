"""The emulators for tests: one set for a session, on free ports. CI must have them."""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from compose.emulators import (
    EmulatorsMissing,
    RunningEmulators,
    emulators,
    firestore_emulator,
)
from core.settings import Settings
from tests.support.stack import free_port


def free_addresses() -> dict[str, str]:
    """Addresses for the three, as settings of the environment."""
    return {
        "DATASTORE_EMULATOR_HOST": f"127.0.0.1:{free_port()}",
        "PUBSUB_EMULATOR_HOST": f"127.0.0.1:{free_port()}",
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{free_port()}",
    }


def own_corner(addresses: Mapping[str, str]) -> dict[str, str]:
    """Settings for one test on shared emulators: a project of its own, since they take any."""
    unique = secrets.token_hex(4)
    return {
        "BACKEND": "emulator",
        "GOOGLE_CLOUD_PROJECT": f"test-{unique}",
        "BUCKET": f"images-{unique}",
        **addresses,
    }


def _without_emulators(missing: EmulatorsMissing) -> NoReturn:
    """Fail where CI is set, so that no green run has left them out; elsewhere skip, and say so.

    `make test` passes on a machine that has nothing but Python: there the embedded backend is what
    can be tested.
    """
    reason = f"These tests need Google's emulators. {missing}"
    if os.environ.get("CI"):
        raise AssertionError(f"{reason} They are required in CI.") from None
    pytest.skip(reason)


@contextmanager
def running_emulators(folder: Path, addresses: dict[str, str]) -> Iterator[RunningEmulators]:
    """All three, at these addresses."""
    values = {name.lower(): value for name, value in addresses.items()}
    settings = Settings(backend="emulator", **values)  # type: ignore[arg-type]  # names are theirs
    try:
        wanted = emulators(settings, folder)
    except EmulatorsMissing as error:
        _without_emulators(error)
    with RunningEmulators(wanted, folder) as running:
        yield running


@contextmanager
def running_firestore(folder: Path) -> Iterator[str]:
    """Firestore's emulator in Datastore mode; its address."""
    try:
        wanted = firestore_emulator("127.0.0.1", free_port())
    except EmulatorsMissing as error:
        _without_emulators(error)
    with RunningEmulators([wanted], folder):
        yield f"{wanted.host}:{wanted.port}"
