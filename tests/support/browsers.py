"""A real browser: Debian's Chromium, driven by Playwright."""

import os
import shutil

from playwright.sync_api import Browser, Playwright

from tests.support.requirements import CHROMIUM

# No request to other hosts: a test that needs one would fail on a closed network.
_ARGUMENTS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def launch_browser(playwright: Playwright) -> Browser:
    """Start Chromium. Skips the test without it."""
    # Chromium's sandbox refuses to run for root.
    extra = ["--no-sandbox"] if os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=_program(), args=[*_ARGUMENTS, *extra])


def _program() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    return CHROMIUM.absent()
