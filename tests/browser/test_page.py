"""The page in a real browser: photos in, labels out, and nothing from other hosts."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, FilePayload, Page, Route, expect

from tests.support.bundles import write_colour_bundle
from tests.support.pictures import picture, sha256
from tests.support.stack import ROOT, Stack, until

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


# Only the style sheet depends on the theme, so most tests run with one.
both_themes = pytest.mark.parametrize("visit", ["light", "dark"], indirect=True)


@pytest.fixture
def visit(request: pytest.FixtureRequest, browser: Browser, stack: Stack) -> Iterator[Visit]:
    context = browser.new_context(color_scheme=getattr(request, "param", "light"))
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


def test_policy_blocks_inline_scripts(visit: Visit) -> None:
    page = visit.open()
    expect(page.locator("h1")).to_be_visible()
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        page.evaluate(f"document.body.insertAdjacentHTML('beforeend', '{HOSTILE}')")
    assert page.title() == "Glimpse"
    assert all("Content Security Policy" in each for each in visit.complaints)
    visit.complaints.clear()


def test_file_dropped_beside_the_drop_area_keeps_the_page(visit: Visit) -> None:
    page = visit.open()
    expect(page.locator("h1")).to_be_visible()
    # A browser opens a dropped file unless a listener cancels the event.
    for name in ("dragover", "drop"):
        cancelled = page.evaluate(
            "name => !document.querySelector('h1').dispatchEvent("
            "new DragEvent(name, { bubbles: true, cancelable: true }))",
            name,
        )
        assert cancelled, name


def test_only_the_style_sheet_depends_on_the_theme() -> None:
    scripts = list((ROOT / "app/page/static").glob("*.js"))
    assert len(scripts) > 5
    assert not [each.name for each in scripts if "color-scheme" in each.read_text()]
    assert "prefers-color-scheme" in (ROOT / "app/page/static/style.css").read_text()


@both_themes
def test_theme_is_that_of_the_reader(visit: Visit) -> None:
    page = visit.open()
    expect(page.locator("h1")).to_be_visible()
    ground, ink = (
        sum(page.evaluate(f"getComputedStyle(document.body).{of}.match(/\\d+/g).map(Number)"))
        for of in ("backgroundColor", "color")
    )
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (ground < ink) == dark


def test_file_that_is_no_image_shows_the_reason(visit: Visit) -> None:
    page = visit.open()
    broken = FilePayload(name="a.png", mimeType="image/png", buffer=b"no image at all")
    page.locator("input[type=file][aria-label='Choose photos']").set_input_files(broken)
    expect(page.locator("article [role=alert]")).to_contain_text("not a")


def test_folder_is_uploaded_as_a_job(visit: Visit, tmp_path: Path) -> None:
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
    assert text.count("\n") == 27
    assert "many/0.png" in text or json.dumps("many/0.png")[1:-1] in text


def test_every_view_opens(visit: Visit) -> None:
    for view, words in (
        ("/models", "colours@"),
        ("/history", "History"),
        ("/operate", "records: ok"),
        ("/jobs", "New job"),
        ("/", "What is in this picture?"),
    ):
        page = visit.open(view)
        expect(page.locator("main")).to_contain_text(words)
        name = "" if view == "/" else f"{view[1:].capitalize()} · "
        expect(page).to_have_title(f"{name}Glimpse")


def test_the_page_fits_a_small_screen(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 320, "height": 640})
    for view in ("/", "/history", "/jobs", "/models", "/operate"):
        page = visit.open(view)
        expect(page.locator("main h1")).to_be_visible()
        page.wait_for_timeout(200)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 320, view


def test_page_reports_an_unreachable_service(visit: Visit, tmp_path: Path) -> None:
    page = visit.open()
    page.route("**/api/**", lambda route: route.abort())
    choose(page, "Choose photos", photo(tmp_path, "red.png", RED))
    expect(page.locator("article [role=alert]")).to_contain_text("does not answer")


# --- History and jobs -----------------------------------------------------------------------------


def label(visit: Visit, folder: Path, name: str, colour: tuple[int, int, int]) -> str:
    """Label a photo in the page; its hash."""
    page = visit.open()
    file = photo(folder, name, colour)
    choose(page, "Choose photos", file)
    expect(page.locator(".best").first).to_be_visible()
    return sha256(file.read_bytes())


def test_history_shows_filters_and_deletes_images(visit: Visit, tmp_path: Path) -> None:
    image_hash = label(visit, tmp_path, "blue.png", BLUE)
    page = visit.open("/history")
    tile = page.locator(f".tile:has(a[href='#/images/{image_hash}'])")
    expect(tile).to_contain_text("blue")
    expect(tile.locator("img")).to_be_visible()
    assert tile.locator("img").evaluate("image => image.naturalWidth") == 40
    page.get_by_label("Label", exact=True).fill("red")
    page.get_by_label("Label", exact=True).press("Enter")
    expect(tile).to_have_count(0)
    page.get_by_label("Label", exact=True).fill("blue")
    page.get_by_label("Label", exact=True).press("Enter")
    page.get_by_label("Confidence").select_option("0.5")
    expect(tile).to_be_visible()
    page.on("dialog", lambda dialog: dialog.accept())
    tile.get_by_role("button", name="Delete").click()
    expect(tile).to_have_count(0)
    page.get_by_role("button", name="Refresh").click()
    expect(page.locator(".grid")).to_have_attribute("aria-busy", "false")
    expect(tile).to_have_count(0)


def made_job(visit: Visit, image_hash: str) -> str:
    """A completed job with a success and a failure that may be retried."""
    body = {"name": "<b>Summer</b>", "image_hashes": [image_hash, secrets.token_hex(32)]}
    answer = visit.page.request.post(f"{visit.base}/api/v1/jobs/batch-predict", data=body)
    job_id: str = answer.json()["job_id"]
    job = f"{visit.base}/api/v1/jobs/{job_id}"
    until(lambda: visit.page.request.get(job).json()["completed_at"], "the job ends")
    return job_id


def test_failed_items_are_listed_first_and_can_be_retried(visit: Visit, tmp_path: Path) -> None:
    job_id = made_job(visit, label(visit, tmp_path, "red.png", RED))
    page = visit.open(f"/jobs/{job_id}")
    expect(page.locator("h1")).to_have_text("<b>Summer</b>")
    titles = page.locator("main h2")
    expect(titles.first).to_have_text("Failed items")
    expect(page.locator("main")).to_contain_text("has no image with this hash")
    page.get_by_role("button", name="Retry failed").click()
    expect(page.locator("main")).to_contain_text("A retry of")
    expect(page.locator("main")).to_contain_text("1 of 1")
    assert page.url != f"{visit.base}/#/jobs/{job_id}"


def test_refused_file_of_a_folder_is_named_with_the_reason(visit: Visit, tmp_path: Path) -> None:
    photo(tmp_path / "shelf", "a.png", RED)
    (tmp_path / "shelf/broken.png").write_bytes(b"broken" + secrets.token_bytes(4))
    page = visit.open("/jobs")
    page.locator("input[type=file][aria-label='Choose a folder']").set_input_files(
        tmp_path / "shelf"
    )
    row = page.locator("tr", has_text="shelf/broken.png").first
    expect(row).to_contain_text("not a", timeout=60_000)
    expect(page.locator("h1")).to_have_text("shelf")


# --- Training -------------------------------------------------------------------------------------


COOL = "<b>cool"


def sorted_folder(folder: Path) -> Path:
    """Pictures in a folder for each label. One picture of `warm` is blue: a wrong label."""
    for number in range(6):
        photo(folder, f"warm/{number}.png", RED)
        photo(folder, f"{COOL}/{number}.png", BLUE)
    photo(folder, "warm/wrong.png", BLUE)
    return folder


def train(visit: Visit, folder: Path) -> str:
    """Train a model in the page on a folder of folders, and return its name."""
    page = visit.open("/models")
    name = f"moods-{secrets.token_hex(3)}"
    page.get_by_label("Name of the model").fill(name)
    page.locator("input[aria-label='Choose a folder of folders']").set_input_files(folder)
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.locator("h1")).to_have_text(name, timeout=60_000)
    return name


def test_model_is_trained_corrected_and_trained_again(visit: Visit, tmp_path: Path) -> None:
    name = train(visit, sorted_folder(tmp_path / "moods"))
    page = visit.page
    first = page.locator("main > section").first.get_attribute("aria-label")
    matrix = page.get_by_role("region", name="Confusion matrix")
    expect(matrix.locator("tbody tr")).to_have_text([f"{COOL}60", "warm16"])
    mistake = page.get_by_role("list", name="Worst mistakes").locator("li")
    expect(mistake).to_have_count(1)
    assert mistake.locator("img").evaluate("image => image.naturalWidth") == 40
    expect(mistake.get_by_label("Right label")).to_have_value(COOL)
    mistake.get_by_role("button", name="Correct").click()
    expect(mistake).to_contain_text(f"Corrected to {COOL}")
    expect(page.locator("main")).to_contain_text("1 correction is used in the next training")
    page.get_by_role("button", name="Train again").click()
    versions = page.locator("main > section").filter(has_text="accuracy, 95 %")
    expect(versions).to_have_count(2, timeout=60_000)
    expect(versions.first.locator(".matrix tbody tr")).to_have_text([f"{COOL}70", "warm06"])
    expect(versions.first).to_contain_text("None.")
    page.get_by_role("button", name=f"Activate {first}").click()
    expect(versions.last.locator("strong.good")).to_have_text("active")
    page.on("dialog", lambda dialog: dialog.accept())
    versions.first.get_by_role("button", name="Delete").click()
    expect(versions).to_have_count(1)
    page.get_by_role("link", name="Try this model").click()
    expect(page.get_by_label("Model")).to_have_value(name)
    choose(page, "Choose photos", photo(tmp_path, "red.png", RED))
    expect(page.locator(".best")).to_have_text("warm")
    page.goto(f"{visit.base}/#/models/{name}")
    page.get_by_role("button", name="Delete the model").click()
    expect(page.locator("h1")).to_have_text("Models")
    expect(page.locator("tbody tr", has_text="colours@")).to_be_visible()
    expect(page.locator("tbody")).not_to_contain_text(name)


def test_pictures_are_sorted_by_keyboard_and_pointer(visit: Visit, tmp_path: Path) -> None:
    page = visit.open("/models")
    page.get_by_label("Label 1", exact=True).fill("warm")
    page.get_by_label("Label 2", exact=True).fill("cool")
    files = [photo(tmp_path, f"{number}.png", RED) for number in range(7)]
    choose(page, "Add pictures to warm", *files)
    cards = page.locator(".label")
    expect(cards.first).to_contain_text("7 pictures")
    page.evaluate(
        """() => {
            const transfer = new DataTransfer();
            transfer.items.add(new File(["x"], "dropped.png", { type: "image/png" }));
            const event = { bubbles: true, cancelable: true, dataTransfer: transfer };
            document.querySelectorAll(".label")[1].dispatchEvent(new DragEvent("drop", event));
        }"""
    )
    expect(cards.nth(1)).to_contain_text("1 picture, 4 more needed")
    page.get_by_label("Label of dropped.png").select_option("Remove")
    menu = page.get_by_label("Label of 0.png")
    menu.focus()
    menu.press("c")  # selects “cool”
    expect(cards.nth(0)).to_contain_text("6 pictures")
    expect(cards.nth(1)).to_contain_text("1 picture, 4 more needed")
    page.locator(".previews li", has=page.get_by_label("Label of 1.png")).drag_to(cards.nth(1))
    expect(cards.nth(1)).to_contain_text("2 pictures, 3 more needed")
    page.get_by_label("Name of the model").fill("moods")
    page.get_by_role("button", name="Train", exact=True).press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("“cool” needs at least 5 pictures and has 2")
    page.get_by_label("Label of 0.png").select_option("Remove")
    expect(cards.nth(1)).to_contain_text("1 picture")


# --- Models of the service ------------------------------------------------------------------------


def test_page_of_a_model_says_when_an_answer_is_not_sure(visit: Visit) -> None:
    page = visit.open("/models/sure")
    expect(page.locator("main")).to_contain_text(
        "Below 90 % an answer is “not sure”, unless its narrowest category has at least 99 %."
    )


def test_output_of_a_python_bundle_is_shown_beside_its_labels(visit: Visit, tmp_path: Path) -> None:
    page = visit.open("/?model=brightness")
    choose(page, "Choose photos", photo(tmp_path, "red.png", RED))
    expect(page.locator(".best")).to_have_text("dark")
    expect(page.locator(".bars + pre")).to_contain_text('"size"')


# --- Accessibility, documentation -----------------------------------------------------------------


@both_themes
def test_axe_finds_nothing(visit: Visit, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    trained = train(visit, sorted_folder(tmp_path / "moods"))
    image_hash = label(visit, tmp_path, "red.png", RED)
    job_id = made_job(visit, image_hash)
    model = visit.page.request.get(f"{visit.base}/api/v1/models").json()["models"][0]["id"]
    for view, ready in (
        ("", ".best"),
        ("/history", ".tile img"),
        (f"/images/{image_hash}", ".best"),
        ("/jobs", "tbody tr"),
        (f"/jobs/{job_id}", "tbody tr"),
        ("/models", "tbody tr"),
        (f"/models/{model}", ".chip"),
        (f"/models/{trained}", ".tile img"),
        ("/operate", "main h2"),
    ):
        page = visit.open(view) if view else visit.page
        expect(page.locator(ready).first).to_be_visible()
        results = axe.run(page)
        assert results.violations_count == 0, f"{view}: {results.generate_report()}"


def test_documentation_works_without_other_hosts(visit: Visit) -> None:
    visit.page.goto(f"{visit.base}/docs")
    operation = visit.page.locator("#operations-images-list_images")
    expect(operation).to_contain_text("List images")
    operation.locator("button").first.click()
    expect(operation).to_contain_text("min_confidence")
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table").first).to_contain_text("next_cursor")


# --- Many photos, a service that ends, keys -------------------------------------------------------


def test_folder_of_a_thousand_photos(visit: Visit, tmp_path: Path) -> None:
    for number in range(1000):
        photo(tmp_path / "thousand", f"{number:04}.png", RED if number % 2 else BLUE)
    page = visit.open("/jobs")
    page.locator("input[type=file][aria-label='Choose a folder']").set_input_files(
        tmp_path / "thousand"
    )
    expect(page.locator("main")).to_contain_text("1000 succeeded", timeout=200_000)
    expect(page.locator("main")).to_contain_text("The first 300 of 1000")


@pytest.fixture
def keyed(browser: Browser, tmp_path: Path) -> Iterator[tuple[Stack, Visit]]:
    """A service that requires keys, and a visit of its page."""
    model = write_colour_bundle(tmp_path / "model")
    with Stack(tmp_path / "stack", model, api_keys="required") as stack:
        context = browser.new_context()
        visit = Visit(context.new_page(), f"http://127.0.0.1:{stack.api_port}")
        yield stack, visit
        context.close()


def test_page_asks_for_a_key_and_survives_a_restart_of_the_service(
    keyed: tuple[Stack, Visit], tmp_path: Path
) -> None:
    stack, visit = keyed
    page = visit.open("/history")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.get_by_label("API key").fill(stack.make_key("--scopes", "all"))
    page.locator("form").get_by_role("button", name="Sign in").click()
    expect(page.locator("main")).to_contain_text("No images")
    assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]
    for number in range(60):
        photo(tmp_path / "many", f"{number}.png", RED)
    uploads: list[str] = []

    def stop_in_the_middle(route: Route) -> None:
        uploads.append(route.request.url)
        if len(uploads) == 20:
            stack.kill("api")
        route.continue_()

    page.route("**/api/v1/images", stop_in_the_middle)
    page = visit.page
    page.goto(f"{visit.base}/#/jobs")
    page.locator("input[type=file][aria-label='Choose a folder']").set_input_files(
        tmp_path / "many"
    )

    def killed() -> bool:
        page.wait_for_timeout(50)  # the browser's events arrive meanwhile
        return len(uploads) >= 20

    until(killed, "the service is killed")
    stack.start("api")
    expect(page.locator("main")).to_contain_text("60 succeeded", timeout=60_000)
    assert not [each for each in visit.complaints if "ERR_CONNECTION" not in each]


def test_refusal_says_what_to_do(keyed: tuple[Stack, Visit], tmp_path: Path) -> None:
    stack, visit = keyed
    photo_of_key = photo(tmp_path, "red.png", RED)
    for arguments, advice in (
        (("--scopes", "read"), "Your key does not permit this: it needs the scope “classify”."),
        (("--scopes", "read,classify", "--daily-quota", "1"), "Your key has used its limit."),
    ):
        key = stack.make_key(*arguments)
        page = visit.open()
        page.evaluate("key => sessionStorage.setItem('glimpse-key', key)", key)
        page.reload()
        expect(page.locator("h1")).to_be_visible()
        choose(page, "Choose photos", photo_of_key)
        expect(page.locator("article [role=alert]")).to_contain_text(advice)


def test_key_is_made_with_limits_rotated_and_revoked(keyed: tuple[Stack, Visit]) -> None:
    stack, visit = keyed
    page = visit.open("/operate")
    page.get_by_label("API key").fill(stack.make_key("--scopes", "all"))
    page.locator("form").get_by_role("button", name="Sign in").click()
    part = page.locator("section", has=page.get_by_role("heading", name="Keys"))
    part.get_by_label("Name").fill("<i>camera</i>")
    part.get_by_label("Rate limit").fill("5/minute")
    part.get_by_label("Requests a day").fill("100")
    part.get_by_role("button", name="Make a key").click()
    row = part.locator("tr", has_text="<i>camera</i>")
    expect(row).to_contain_text("5/minute, 100 a day")
    first = part.locator("code").inner_text()
    assert first.startswith("glp_")
    part.get_by_role("button", name="Rotate <i>camera</i>").click()
    expect(part.locator("code")).not_to_have_text(first)
    part.get_by_role("button", name="Done").click()
    expect(part.locator("code")).to_have_count(0)
    page.on("dialog", lambda dialog: dialog.accept())
    part.get_by_role("button", name="Revoke <i>camera</i>").click()
    expect(row).to_contain_text("inactive")
