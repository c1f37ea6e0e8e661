"""The page in a real browser: photos in, labels out, and nothing from other hosts."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect

from tests.support.pictures import picture
from tests.support.stack import Stack

RED, BLUE = (200, 30, 30), (30, 30, 200)
HOSTILE = '<img src=x onerror="document.title=1">.png'


class Visit:
    """A page with what it asked for and complained of."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._note)
        page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))

    def _note(self, message: Any) -> None:
        # A refusal of the API is the page's to show, and no fault of it.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def open(self, view: str = "/") -> Page:
        self.page.goto(f"{self.base}/#{view}")
        self.page.reload()
        return self.page


@pytest.fixture(params=["light", "dark"])
def visit(request: pytest.FixtureRequest, browser: Browser, stack: Stack) -> Iterator[Visit]:
    context = browser.new_context(color_scheme=request.param)
    base = f"http://127.0.0.1:{stack.api_port}"
    visit = Visit(context.new_page(), base)
    yield visit
    context.close()
    assert visit.complaints == []
    assert {host for host in visit.hosts if host} <= {base.removeprefix("http://")}


def photo(folder: Path, name: str, colour: tuple[int, int, int]) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(picture(secrets.randbits(30), colour, (40, 30), "PNG"))
    return file


def choose(page: Page, label: str, *files: Path) -> None:
    page.locator(f"input[type=file][aria-label='{label}']").set_input_files([*files])


def test_a_photo_is_labelled_and_known_the_second_time(visit: Visit, tmp_path: Path) -> None:
    page = visit.open()
    file = photo(tmp_path, "red.png", RED)
    choose(page, "Choose photos", file)
    expect(page.locator(".best").first).to_have_text("red")
    expect(page.locator("article").first).to_contain_text("Labelled in")
    uploads: list[str] = []
    page.on("request", lambda r: uploads.append(r.url) if r.method == "POST" else None)
    choose(page, "Choose photos", file)
    expect(page.locator("article").first).to_contain_text("Known: nothing was uploaded")
    assert uploads == []


def test_hostile_names_are_shown_as_text(visit: Visit, tmp_path: Path) -> None:
    page = visit.open()
    file = photo(tmp_path, "plain.png", BLUE)
    named = FilePayload(name=HOSTILE, mimeType="image/png", buffer=file.read_bytes())
    page.locator("input[type=file][aria-label='Choose photos']").set_input_files(named)
    expect(page.locator("article h2")).to_have_text(HOSTILE)
    expect(page.locator(".best")).to_have_text("blue")
    assert page.title() == "Glimpse"


def test_what_is_no_image_says_so(visit: Visit) -> None:
    page = visit.open()
    broken = FilePayload(name="a.png", mimeType="image/png", buffer=b"no image at all")
    page.locator("input[type=file][aria-label='Choose photos']").set_input_files(broken)
    expect(page.locator("article [role=alert]")).to_contain_text("not a")


def test_a_folder_becomes_a_job(visit: Visit, tmp_path: Path) -> None:
    page = visit.open("/jobs")
    for n in range(25):
        photo(tmp_path / "many", f"{n}.png", RED if n % 5 else BLUE)
    (tmp_path / "many/broken.png").write_bytes(b"broken" + secrets.token_bytes(4))
    page.locator("input[type=file][aria-label='Choose a folder']").set_input_files(
        tmp_path / "many"
    )
    expect(page.locator("main")).to_contain_text("completed", timeout=60_000)
    expect(page.locator("main")).to_contain_text("25 succeeded")
    expect(page.locator("main")).to_contain_text("Most frequent labels")
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV").click()
    text = Path(saved.value.path()).read_text()
    assert text.count("\n") == 26
    assert "many/0.png" in text or json.dumps("many/0.png")[1:-1] in text


def test_every_view_opens(visit: Visit) -> None:
    for view, words in (
        ("/models", "colours@"),
        ("/operate", "records: ok"),
        ("/jobs", "New job"),
        ("/", "What is in this picture?"),
    ):
        page = visit.open(view)
        expect(page.locator("main")).to_contain_text(words)


def test_the_page_fits_a_small_screen(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 320, "height": 640})
    for view in ("/", "/jobs", "/models", "/operate"):
        page = visit.open(view)
        expect(page.locator("main h1")).to_be_visible()
        page.wait_for_timeout(200)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 320, view


def test_a_service_that_is_down_is_said(visit: Visit, tmp_path: Path) -> None:
    page = visit.open()
    page.route("**/api/**", lambda route: route.abort())
    choose(page, "Choose photos", photo(tmp_path, "red.png", RED))
    expect(page.locator("article [role=alert]")).to_contain_text("does not answer")
