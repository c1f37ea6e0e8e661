"""`make screenshots` takes the pictures of the page and of the terminal in docs/images.

It starts a Glimpse of its own on free ports, with a temporary folder, and needs Chromium. The
photos are those of scikit-image, which belong to the development tools.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from rich.console import Console
from rich.text import Text

from core.settings import DEFAULT_BUNDLE
from tests.support.pictures import photo
from tests.support.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
EXAMPLES = ("cat.jpg", "coffee.jpg")
FOLDER = "holiday"
PHOTOS = 40
WIDTH, HEIGHT = 1100, 760
COLUMNS = 110
_BAR = re.compile(r"\d+/[\d?]+.*\d:\d\d:\d\d")  # a frame of a progress bar


def main() -> None:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("Screenshots need Chromium.")
    with TemporaryDirectory() as name, Stack(Path(name) / "stack", DEFAULT_BUNDLE) as stack:
        folder = _photos(Path(name) / FOLDER)
        url = f"http://127.0.0.1:{stack.api_port}"
        _record(url, folder)
        with sync_playwright() as playwright:
            extra = ["--no-sandbox"] if os.geteuid() == 0 else []
            browser = playwright.chromium.launch(executable_path=program, args=extra)
            for theme, suffix in (("light", ""), ("dark", "-dark")):
                _take(browser, url, folder, theme, suffix)
            browser.close()


def _photos(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in EXAMPLES:
        shutil.copy(ROOT / "examples" / name, folder)
    for number in range(PHOTOS - len(EXAMPLES)):
        (folder / f"photo-{number:02}.jpg").write_bytes(photo(number))
    (folder / "notes.jpg").write_text("This is not a photo.")
    return folder


def _take(browser: Browser, url: str, folder: Path, theme: str, suffix: str) -> None:
    context = browser.new_context(
        viewport={"width": WIDTH, "height": HEIGHT},
        color_scheme="dark" if theme == "dark" else "light",
    )
    page = context.new_page()
    page.goto(f"{url}/")
    choose = page.locator("input[type=file][aria-label='Choose photos']")
    choose.set_input_files([ROOT / "examples" / name for name in EXAMPLES])
    expect(page.locator(".best")).to_have_count(len(EXAMPLES))
    _shoot(page, f"page{suffix}")
    page.goto(f"{url}/#/jobs")
    page.locator("input[type=file][aria-label='Choose a folder']").set_input_files(folder)
    expect(page.locator("h1")).to_have_text(FOLDER, timeout=120_000)
    expect(page.locator("main")).to_contain_text(f"{PHOTOS} succeeded", timeout=120_000)
    expect(page.locator("main")).to_contain_text("Most frequent labels")
    _shoot(page, f"job{suffix}")
    page.goto(f"{url}/#/history")
    page.locator(".tile img").nth(11).wait_for()
    _shoot(page, f"history{suffix}")
    page.goto(f"{url}/#/operate")
    expect(page.locator("main")).to_contain_text("records: ok")
    _shoot(page, f"operate{suffix}")
    context.close()


def _shoot(page: Page, name: str) -> None:
    file = IMAGES / f"{name}.png"
    page.wait_for_timeout(300)  # images fade in
    page.screenshot(path=file)
    with Image.open(file) as image:
        small = image.convert("RGB").quantize(192)
    small.save(file, optimize=True)
    _say(file)


def _record(url: str, folder: Path) -> None:
    """Run commands in a terminal of `COLUMNS`, and draw what it shows."""
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    environment = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")},
        "GLIMPSE_URL": url,
        "FORCE_COLOR": "1",
        "COLUMNS": str(COLUMNS),
        "PYTHONPATH": str(ROOT / "client"),
    }
    for arguments in (
        ["label", *(f"{FOLDER}/{name}" for name in EXAMPLES)],
        ["label", FOLDER, "--output", "labels.csv"],
        ["jobs", "list"],
        ["images", "list", "--label", "Egyptian cat", "--limit", "3"],
    ):
        done = subprocess.run(  # noqa: S603 - constant arguments
            [sys.executable, "-m", "glimpse_client.cli", *arguments],
            cwd=folder.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        console.print(Text(f"$ glimpse {' '.join(arguments)}", style="bold"))
        lines = done.stdout.rstrip("\n").split("\n")
        shown = [line for line in lines if not _BAR.search(line)]
        console.print(Text.from_ansi("\n".join(shown)))
        console.print()
    file = IMAGES / "terminal.svg"
    console.save_svg(str(file), title="glimpse")
    text = file.read_text(encoding="utf-8")
    file.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
    _say(file)


def _say(file: Path) -> None:
    print(f"{file.relative_to(ROOT)} {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
