"""Fixtures and rules of every unit test."""

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

from tests.support.api import Api, api_settings, open_api
from tests.support.clock import LoopClock, MovableClock
from tests.support.seeds import VARIABLE

# Examples are the same in every run, as in `tests/support/seeds.py`. A busy machine may take any
# time over one of them, and that is no fault of what is tested.
settings.register_profile(
    "repeatable",
    settings(),
    derandomize=os.environ.get(VARIABLE) != "random",
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit test starts no process: tests that need one are in `tests/process`."""

    def refused(*_: object, **__: object) -> NoReturn:
        raise AssertionError("A unit test starts a process.")

    monkeypatch.setattr(subprocess.Popen, "__init__", refused)
    monkeypatch.setattr(subprocess.Popen, "__del__", lambda _: None)
    for name in ("fork", "posix_spawn", "system"):
        monkeypatch.setattr(os, name, refused)


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
async def api(tmp_path: Path, colour_bundle: Path) -> AsyncIterator[Api]:
    """The API with its default settings. A test file may define another one."""
    async with open_api(api_settings(tmp_path, colour_bundle)) as running:
        yield running


@pytest.fixture
async def loop_clock() -> LoopClock:
    return LoopClock()


@pytest.fixture(scope="session")
def emulator_addresses() -> NoReturn:
    raise AssertionError("A unit test asks for emulators.")


storage_url = firestore_address = emulator_addresses
