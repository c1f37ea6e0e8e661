"""One backend after another, each empty and real. A new backend adds its name and its branch."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.backends import Backend, open_backend
from core.settings import Settings
from tests.contract.clock import MovableClock


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture(params=["embedded"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return Settings(backend=request.param, data_dir=tmp_path / "data")


@pytest.fixture
async def backend(settings: Settings, clock: MovableClock) -> AsyncIterator[Backend]:
    async with open_backend(settings, clock) as opened:
        yield opened
