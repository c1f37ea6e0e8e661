"""Fixtures and rules that hold for every suite."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before their import: the assertions of support code explain themselves like those of tests.
pytest.register_assert_rewrite("tests.support", "tests.abuse", "tests.chaos")

from tests.support import distribution, requirements  # noqa: E402
from tests.support.bundles import write_colour_bundle  # noqa: E402

RUN = pytest.StashKey[distribution.Run]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "exclusive: runs while no other worker runs a test, because it measures time"
    )
    if not distribution.is_worker():
        forget_the_users_settings()
        distribution.begin()
    config.stash[RUN] = distribution.run()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not distribution.is_worker():
        distribution.end()


def forget_the_users_settings() -> None:
    """Remove what would change a test: settings of a service, of its libraries, and proxies."""
    try:
        from core.settings import Settings
    except ImportError:  # the environment of tests/export, which has no service
        return
    ours = {name.upper() for name in Settings.model_fields}
    for name in list(os.environ):
        if name.upper() in ours or name.startswith("OTEL_") or name.lower().endswith("_proxy"):
            del os.environ[name]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Modules and tests stay until the end of the run: no garbage collection scans them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = distribution.ordered(items)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    exclusive = item.get_closest_marker("exclusive") is not None
    with item.config.stash[RUN].turn(exclusive=exclusive):
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[RUN].close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    return distribution.workers()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return distribution.scheduler(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if line := requirements.summary([str(report.longrepr[2]) for report in skipped]):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def colour_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, tiny model bundle that names a picture's dominant colour."""
    return write_colour_bundle(tmp_path_factory.mktemp("bundles") / "colours")


@pytest.fixture(scope="session")
def emulator_addresses(request: pytest.FixtureRequest) -> dict[str, str]:
    """Google's emulators, running, shared by every test that does not stop them."""
    # Imported here: tests of what has nothing to do with Google load none of it.
    from tests.support.emulators import emulators_at_free_addresses

    return request.config.stash[RUN].shared("emulators", emulators_at_free_addresses)


@pytest.fixture(scope="session")
def storage_url(request: pytest.FixtureRequest) -> str:
    """The storage emulator by itself, for what needs buckets and no other part of Google's."""
    from tests.support.emulators import storage_at_free_address

    return request.config.stash[RUN].shared("storage", storage_at_free_address)["url"]


@pytest.fixture(scope="session")
def firestore_address(request: pytest.FixtureRequest) -> str:
    """Firestore's emulator in Datastore mode."""
    from tests.support.emulators import firestore_at_free_address

    return request.config.stash[RUN].shared("firestore", firestore_at_free_address)["address"]
