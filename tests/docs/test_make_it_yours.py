"""docs/make-it-yours.md works as written."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.test_readme import Curl
from tests.support.bundles import COLOURS, write_colour_bundle
from tests.support.pictures import sha256
from tests.support.stack import ROOT, Stack

PAGE = (ROOT / "docs/make-it-yours.md").read_text()
FOLDERS = ("my-model", "my-function")
_FILE = re.compile(r"^`(my-[\w/.-]+)`:\n\n```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(start: str) -> list[str]:
    """The lines of all shell blocks that begin like this."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.startswith(start)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the page names, with their content there, and a network as the ONNX file."""
    folder = tmp_path_factory.mktemp("yours")
    for name, content in _FILE.findall(PAGE):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    network = write_colour_bundle(folder / "network")
    (folder / "my-model").mkdir()
    for name in ("model.onnx", "labels.txt"):
        assert f"\nmy-model/{name}\n" in PAGE
        shutil.copy(network / name, folder / "my-model")
    return folder


@pytest.fixture(scope="module")
def checked(folder: Path) -> Path:
    found = commands("make bundle DIR=")
    assert [line.partition("=")[2] for line in found] == [*FOLDERS]
    for name in FOLDERS:
        done = subprocess.run(
            [sys.executable, "-m", "models.check_bundle", str(folder / name)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert f"{name}@" in done.stdout
        assert (folder / name / "SHA256SUMS").exists()
    return folder


@pytest.fixture(scope="module")
def stack(checked: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    named = [re.match(r"EXTRA_MODEL_URIS=(\S+) make run", line) for line in commands("EXTRA_")]
    assert [each and each[1] for each in named] == [*FOLDERS]
    uris = ",".join(str(checked / name) for name in FOLDERS)
    with Stack(
        tmp_path_factory.mktemp("stack"), ROOT / "models/default", EXTRA_MODEL_URIS=uris
    ) as running:
        yield running


def test_curl_commands_answer_with_the_models_of_the_page(stack: Stack) -> None:
    photo = (ROOT / "examples/cat.jpg").read_bytes()
    found = {}
    for line in commands("curl "):
        command = Curl.parse(line)
        answer = command.send(stack.api, {"examples/cat.jpg": photo}, {"$HASH": sha256(photo)})
        assert {answer.status_code} == command.statuses, answer.text
        document = answer.json()
        found[document["model"].partition("@")[0]] = document
    assert set(found) == set(FOLDERS)
    assert found["my-model"]["annotations"][0]["label"] in COLOURS
    assert len(found["my-function"]["annotations"]) == 1, "the last command asks for one label"
    assert max(found["my-function"]["output"]["size"]) == 256


def test_places_of_the_page_exist() -> None:
    named = re.findall(r"`((?:app|core|worker|models)/[\w/.]*)`", PAGE)
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]
