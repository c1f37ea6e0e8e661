"""What holds for every unit test."""

import os
import subprocess
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

from tests.support.clock import LoopClock

# A busy machine may take any time over one example, and that is no fault of what is tested. The
# rest is as hypothesis has it, which in CI draws the same examples each time.
settings.register_profile(
    "patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")


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
async def loop_clock() -> LoopClock:
    return LoopClock()


@pytest.fixture(scope="session")
def emulator_addresses() -> NoReturn:
    raise AssertionError("A unit test asks for emulators.")


storage_url = firestore_address = emulator_addresses
