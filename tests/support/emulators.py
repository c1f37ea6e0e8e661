"""The emulators for tests: one set for a session, on free ports. Required: never skipped."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def running_emulators(folder: Path, addresses: dict[str, str]) -> Iterator[RunningEmulators]:
    """All three, at these addresses. A machine without them fails the test, and says why."""
    values = {name.lower(): value for name, value in addresses.items()}
    settings = Settings(backend="emulator", **values)  # type: ignore[arg-type]  # names are theirs
    try:
        wanted = emulators(settings, folder)
    except EmulatorsMissing as error:
        raise AssertionError(f"These tests need Google's emulators. {error}") from None
    with RunningEmulators(wanted, folder) as running:
        yield running


@contextmanager
def running_firestore(folder: Path) -> Iterator[str]:
    """Firestore's emulator in Datastore mode; its address. Required as the others are."""
    try:
        wanted = firestore_emulator("127.0.0.1", free_port())
    except EmulatorsMissing as error:
        raise AssertionError(f"These tests need Google's emulators. {error}") from None
    with RunningEmulators([wanted], folder):
        yield f"{wanted.host}:{wanted.port}"
