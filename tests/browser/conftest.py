"""A real browser: Debian's Chromium, driven by Playwright."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from core.bundles.bundle import write_sums
from tests.support.browsers import launch_browser
from tests.support.bundles import write_colour_bundle
from tests.support.predictors import write_python_bundle
from tests.support.stack import Stack

SECONDS = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SECONDS))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = launch_browser(playwright)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("browser")
    sure = write_colour_bundle(folder / "sure", name="sure")
    manifest = json.loads((sure / "model.json").read_text())
    manifest |= {"threshold": 0.9, "category_threshold": 0.99}
    (sure / "model.json").write_text(json.dumps(manifest))
    write_sums(sure)
    extra = f"{sure},{write_python_bundle(folder / 'brightness')}"
    model = write_colour_bundle(folder / "model")
    with Stack(folder, model, EXTRA_MODEL_URIS=extra) as running:
        yield running
