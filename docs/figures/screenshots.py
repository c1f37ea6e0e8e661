"""`make screenshots` takes the pictures of the page and of the terminal in docs/images.

The recording is an animated WebP of what the terminal shows after each command, and of the page.

It starts a Glimpse of its own on free ports, with a temporary folder, and needs Chromium. The
photos are those of scikit-image, which belong to the development tools.
"""

import io
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

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
LABELS, OF_LABEL = ("cat", "coffee", "rocket"), 12  # photos to train on, for each label
FRAME_WIDTH, FRAME_MS, LAST_FRAME_MS = 880, 1800, 4000
_BAR = re.compile(r"\d+/[\d?]+.*\d:\d\d:\d\d")  # a frame of a progress bar


def main() -> None:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("Screenshots need Chromium.")
    with TemporaryDirectory() as name, Stack(Path(name) / "stack", DEFAULT_BUNDLE) as stack:
        folder = _photos(Path(name) / FOLDER)
        labelled = _labelled(Path(name) / "things")
        url = f"http://127.0.0.1:{stack.api_port}"
        terminal = _record(url, folder)
        with sync_playwright() as playwright:
            extra = ["--no-sandbox"] if os.geteuid() == 0 else []
            browser = playwright.chromium.launch(executable_path=program, args=extra)
            frames = [_drawn(browser, svg) for svg in terminal]
            for theme in ("light", "dark"):
                taken = _take(browser, url, folder, labelled, theme)
                frames += taken if theme == "light" else []
            browser.close()
        _animate(frames)


def _photos(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in EXAMPLES:
        shutil.copy(ROOT / "examples" / name, folder)
    for number in range(PHOTOS - len(EXAMPLES)):
        (folder / f"photo-{number:02}.jpg").write_bytes(photo(number))
    (folder / "notes.jpg").write_text("This is not a photo.")
    return folder


def _labelled(folder: Path) -> Path:
    """Parts of the examples in a folder for each label. Two of `cat` have the wrong label."""
    chance = random.Random(1)
    for label in LABELS:
        (folder / label).mkdir(parents=True)
        for number in range(OF_LABEL):
            wrong = label == "cat" and number >= OF_LABEL - 2
            with Image.open(ROOT / "examples" / f"{'coffee' if wrong else label}.jpg") as image:
                share = chance.uniform(0.4, 0.8)
                width, height = (int(share * side) for side in image.size)
                left = chance.randrange(image.width - width)
                top = chance.randrange(image.height - height)
                part = image.convert("RGB").crop((left, top, left + width, top + height))
            part.resize((400, 300)).save(folder / label / f"{label}-{number:02}.jpg", quality=88)
    return folder


def _take(
    browser: Browser, url: str, folder: Path, labelled: Path, theme: Literal["light", "dark"]
) -> list[Image.Image]:
    """Save the pictures of a theme, and return them in their order."""
    suffix = "" if theme == "light" else f"-{theme}"
    context = browser.new_context(
        viewport={"width": WIDTH, "height": HEIGHT},
        color_scheme=theme,
    )
    page = context.new_page()
    page.goto(f"{url}/")
    choose = page.locator("input[type=file][aria-label='Choose photos']")
    choose.set_input_files([ROOT / "examples" / name for name in EXAMPLES])
    expect(page.locator(".best")).to_have_count(len(EXAMPLES))
    taken = [_shoot(page, f"page{suffix}")]
    page.goto(f"{url}/#/jobs")
    page.locator("input[type=file][aria-label='Choose a folder']").set_input_files(folder)
    expect(page.locator("h1")).to_have_text(FOLDER, timeout=120_000)
    expect(page.locator("main")).to_contain_text(f"{PHOTOS} succeeded", timeout=120_000)
    expect(page.locator("main")).to_contain_text("Most frequent labels")
    taken.append(_shoot(page, f"job{suffix}"))
    page.goto(f"{url}/#/history")
    page.locator(".tile img").nth(11).wait_for()
    taken.append(_shoot(page, f"history{suffix}"))
    page.goto(f"{url}/#/models")
    page.get_by_label("Name of the model").fill(f"things{suffix}")
    choose = page.locator("input[type=file][aria-label='Choose a folder of folders']")
    choose.set_input_files(labelled)
    expect(page.locator(".label")).to_have_count(len(LABELS))
    taken.append(_shoot(page, f"train{suffix}"))
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.locator("h1")).to_have_text(f"things{suffix}", timeout=120_000)
    page.locator(".tile img").first.wait_for()
    page.get_by_role("heading", name="Confusion matrix").scroll_into_view_if_needed()
    page.mouse.wheel(0, HEIGHT // 2)
    taken.append(_shoot(page, f"model{suffix}"))
    page.goto(f"{url}/#/operate")
    expect(page.locator("main")).to_contain_text("records: ok")
    _shoot(page, f"operate{suffix}")
    context.close()
    return taken


def _shoot(page: Page, name: str) -> Image.Image:
    file = IMAGES / f"{name}.png"
    page.wait_for_timeout(300)  # images fade in
    page.screenshot(path=file)
    with Image.open(file) as image:
        frame = image.convert("RGB")
    frame.quantize(192).save(file, optimize=True)
    _say(file)
    return frame


def _drawn(browser: Browser, svg: str) -> Image.Image:
    """An SVG as a frame: its lower end, where it is higher than a frame."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    style = "body { margin: 0; background: #292929 } svg { width: 100% }"
    page.set_content(f"<style>{style}</style>{svg}")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    frame = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.close()
    return frame


def _animate(frames: list[Image.Image]) -> None:
    file = IMAGES / "recording.webp"
    size = (FRAME_WIDTH, FRAME_WIDTH * HEIGHT // WIDTH)
    first, *others = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
    times = [FRAME_MS] * len(others) + [LAST_FRAME_MS]
    first.save(
        file, save_all=True, append_images=others, duration=times, loop=0, quality=75, method=6
    )
    _say(file)


def _record(url: str, folder: Path) -> list[str]:
    """Run commands in a terminal of `COLUMNS`, and draw what it shows after each of them."""
    drawn = []
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
        console.print(Text(f"$ glimpse {shlex.join(arguments)}", style="bold"))
        lines = done.stdout.rstrip("\n").split("\n")
        shown = [line for line in lines if not _BAR.search(line)]
        console.print(Text.from_ansi("\n".join(shown)))
        console.print()
        drawn.append(console.export_svg(title="glimpse", clear=False))
    file = IMAGES / "terminal.svg"
    console.save_svg(str(file), title="glimpse")
    text = file.read_text(encoding="utf-8")
    file.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
    _say(file)
    return drawn


def _say(file: Path) -> None:
    print(f"{file.relative_to(ROOT)} {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
