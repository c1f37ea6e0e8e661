"""The README and the other pages are true."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from dotenv import dotenv_values

from compose import demo_training, settings_docs
from compose.demo import PHOTOS, photos
from compose.demo_batch import BROKEN, IMAGES, NOT_SURE
from core.bundles.bundle import read_bundle
from core.settings import DEFAULT_BUNDLE, REMOVED, Settings, unknown_names
from tests.support.pictures import picture, sha256
from tests.support.settings import isolated_settings
from tests.support.stack import ROOT, Stack
from worker.inference.classifier import Classifier

README = (ROOT / "README.md").read_text()
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")]
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_settings_page_is_current() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    assert page == settings_docs.settings_page(), "run python -m compose.settings_docs"
    assert all(f"| `{name.upper()}` |" in page for name in Settings.model_fields)


def test_env_example_is_current_and_valid(tmp_path: Path) -> None:
    text = (ROOT / ".env.example").read_text()
    assert text == settings_docs.env_example(), "run python -m compose.settings_docs"
    uncommented = re.sub(r"^# (?=[A-Z_]+=)", "", text, flags=re.MULTILINE)
    (tmp_path / ".env").write_text(uncommented)
    assert Settings(_env_file=tmp_path / ".env").delivery == isolated_settings().delivery
    assert not unknown_names(dotenv_values(tmp_path / ".env"))


def test_no_page_names_a_removed_setting() -> None:
    for page in PAGES:
        named = set(re.findall(r"`([A-Z_]{4,})(?==|`)", page.read_text()))
        assert not named & REMOVED.keys(), page.name


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^    |`|\s)make ([a-z-]+)(?=[\s`=:,.]|$)", page.read_text()):
            if f"`make {target}" in page.read_text() or f"    make {target}" in page.read_text():
                assert target in targets, f"{page.name} names make {target}"


def test_every_documented_target_is_in_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: ([a-z-]+)", makefile, re.MULTILINE))
    described = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert phony == described
    wanted = {"help", "setup", "run", "demo", "test", "lint", "format", "bench", "clean", "model"}
    assert wanted <= described


def test_ci_runs_the_readme_test_command() -> None:
    assert "    make test\n" in README
    lines = (ROOT / ".ci/run").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert commands.pop() == "exec make test"
    # What comes before installs the browser, where there is none and it may.
    assert commands[0].startswith("if ! command -v chromium")
    assert "apt-get install --yes --quiet=2 chromium" in commands[1]
    assert commands[2:] == ["fi"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_paths_named_in_the_architecture_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    named = re.findall(r"`((?:app|worker|core|models|compose|tests|docs)/[\w./-]*)`", text)
    assert len(named) > 5
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_each_mitigated_threat_names_an_existing_test() -> None:
    text = (ROOT / "docs/threat-model.md").read_text()
    answered = text.partition("## Threats")[2].partition("## Limits of the protection")[0]
    rows = [line for line in answered.splitlines() if line.startswith("| ") and "---" not in line]
    threats = [row for row in rows if not row.startswith("| threat ")]
    assert len(threats) > 20
    for row in threats:
        named = re.findall(r"`(tests/[\w/]+\.py)`", row)
        assert named, row
        assert all((ROOT / name).is_file() for name in named), row


@dataclass(frozen=True)
class Curl:
    """A curl command as README writes it, and the statuses its comment announces."""

    line: str
    method: str
    url: str
    headers: dict[str, str]
    uploads: list[tuple[str, str]]
    body: str | None
    output: str | None
    follow: bool
    statuses: set[int]

    @classmethod
    def parse(cls, line: str) -> "Curl":
        command, _, comment = line.partition(" # ")
        method, url, headers, body = "GET", "", {}, None
        output, follow = None, False
        uploads: list[tuple[str, str]] = []
        words = iter(shlex.split(command)[1:])
        for word in words:
            match word:
                case "-i" | "-s" | "-sN":
                    pass
                case "-sL":
                    follow = True
                case "-F":
                    name, _, file = next(words).partition("=@")
                    method = "POST"
                    uploads.append((name, file))
                case "-H":
                    name, _, value = next(words).partition(": ")
                    headers[name] = value
                case "--data-binary":
                    method, body = "POST", next(words).removeprefix("@")
                case "-X":
                    method = next(words)
                case "-o":
                    output = next(words)
                case _:
                    assert word.startswith("http://127.0.0.1:8080/"), f"unknown option {word}"
                    url = word.removeprefix("http://127.0.0.1:8080")
        statuses = {int(number) for number in re.findall(r"\b[2-5]\d\d\b", comment)}
        assert statuses, f"no status announced: {line}"
        return cls(line, method, url, headers, uploads, body, output, follow, statuses)

    def send(
        self, client: httpx.Client, files: dict[str, bytes], variables: dict[str, str]
    ) -> httpx.Response:
        url = self.url
        for name, value in variables.items():
            url = url.replace(name, value)
        uploads = [(name, (Path(file).name, files[file])) for name, file in self.uploads]
        return client.request(
            self.method,
            url,
            headers=self.headers,
            files=uploads or None,
            content=files[self.body] if self.body else None,
            follow_redirects=self.follow,
        )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("readme"), DEFAULT_BUNDLE) as running:
        yield running


def test_curl_examples_do_what_they_say(stack: Stack) -> None:
    files = {
        name: (ROOT / name).read_bytes() for name in ("examples/cat.jpg", "examples/coffee.jpg")
    }
    cat = files["examples/cat.jpg"]
    variables = {"$HASH": sha256(cat)}
    commands = [
        Curl.parse(line)
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("curl ")
    ]
    assert len(commands) >= 13
    saved = 0
    for command in commands:
        answer = command.send(stack.api, files, variables)
        passed = {each.status_code for each in (*answer.history, answer)}
        assert passed <= command.statuses, f"{command.line}: {answer.text}"
        if command.follow:
            assert passed == command.statuses
        if command.output == "copy.jpg":
            assert answer.content == cat
            saved += 1
        if command.statuses == {202, 200}:
            assert len(stack.result(sha256(cat))["annotations"]) == 5  # type: ignore[arg-type]
        if "job_id" in command.line:
            variables["$JOB"] = answer.json()["job_id"]
        if "events" in command.line:
            assert "event: complete" in answer.text
        if "text/csv" in command.line:
            rows = answer.text.splitlines()[1:]
            assert [row.split(",")[2] for row in rows] == ["cat.jpg", "coffee.jpg"]
        if "Location" in command.line:
            assert answer.headers["location"]
            assert answer.headers["retry-after"]
    assert saved == 1


def test_example_answer_has_the_shape_of_a_real_one(stack: Stack) -> None:
    (example,) = (json.loads(block) for block in blocks("json"))
    real = stack.api.post("/what/slow", files={"img": ("p.jpg", picture(seed=98))}).json()
    assert list(example) == list(real)
    assert list(example["annotations"][0]) == list(real["annotations"][0])
    assert type(example["created_at"]) is type(real["created_at"])
    # Anything else in the example is checked against the bundle that README describes.
    assert example["model"].split("@")[0] == real["model"].split("@")[0]
    labels = (ROOT / "models/default/labels.txt").read_text().splitlines()
    assert {a["label"] for a in example["annotations"]} <= set(labels)


def test_example_answer_is_that_of_the_example_photo(stack: Stack) -> None:
    (example,) = (json.loads(block) for block in blocks("json"))
    cat = (ROOT / "examples/cat.jpg").read_bytes()
    real = stack.api.post("/what/slow", files={"img": ("cat.jpg", cat)}).json()
    for name in ("image_hash", "status", "model", "confident", "image_url"):
        assert example[name] == real[name]
    for name in ("annotations", "categories"):
        shown = [(each["label"], round(each["confidence"], 3)) for each in example[name]]
        answered = [(each["label"], round(each["confidence"], 3)) for each in real[name]]
        assert shown == answered[: len(shown)]


def test_demo_shows_the_labels_of_the_bundled_model() -> None:
    shown = README.partition("<!-- demo: begin -->")[2].partition("<!-- demo: end -->")[0]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines()]
    labels: dict[str, list[str]] = {}
    file = ""
    for row in cells:
        if len(row) == 6:
            file = row[0] or file  # a photo's name stands beside its first label only
            labels.setdefault(file, []).append(row[3])
    bundle = read_bundle(DEFAULT_BUNDLE)
    classifier = Classifier(bundle, max_pixels=10**6, labels_per_image=3)
    assert tuple(labels) == PHOTOS
    expected = {}
    for file, photo in photos():
        found = classifier.classify(photo)
        expected[file] = [f"{each.label} {each.confidence:.0%}" for each in found.annotations]
        if found.confident is False:
            expected[file].insert(0, NOT_SURE)
    assert labels == expected
    assert [file for file, shown in labels.items() if NOT_SURE in shown] == ["rocket.jpg"]
    # The job has random images, so only the names of its labels are certain.
    frequent = dict(row for row in cells if len(row) == 2)
    assert frequent
    assert set(frequent) <= {*bundle.labels, NOT_SURE}
    assert f"{IMAGES + BROKEN}/{IMAGES + BROKEN} {BROKEN} failed" in shown
    # The training's figures depend on the processor, but each row has all drawings of its label.
    matrix = [row for row in cells if len(row) == 1 + len(demo_training.LABELS)]
    assert tuple(row[0] for row in matrix) == tuple(demo_training.LABELS)
    for row in matrix:
        assert sum(int(count.replace("·", "0")) for count in row[1:]) == demo_training.IMAGES
