"""The base image of a release: pinned by digest, and the one that local builds use."""

import re
from pathlib import Path

import pytest

from deploy import base_image as module
from deploy.base_image import DOCKERFILE, PINNED, Unpinned, base_image, main
from tests.support.stack import ROOT

DIGEST = "sha256:" + "0123456789abcdef" * 4
TAG = "python:3.13-slim-bookworm"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository that has the two files."""
    for name, text in (
        (PINNED, f"# why\nFROM {TAG}@{DIGEST}\n"),
        (DOCKERFILE, f"ARG PYTHON_IMAGE={TAG}\n\nFROM ${{PYTHON_IMAGE}} AS base\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_release_takes_the_tag_of_local_builds_with_its_digest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main() == 0
    argument = capsys.readouterr().out.strip()
    pinned = re.fullmatch(r"PYTHON_IMAGE=(python:3\.\d+-slim-\w+)@sha256:[0-9a-f]{64}", argument)
    assert pinned is not None, argument
    assert f"\nARG {argument.partition('@')[0]}\n" in (ROOT / DOCKERFILE).read_text()


def test_image_is_returned_with_its_digest(tree: Path) -> None:
    assert base_image(tree) == f"{TAG}@{DIGEST}"


@pytest.mark.parametrize(
    "line",
    [
        f"FROM {TAG}",
        f"FROM {TAG}@{DIGEST[:-1]}",
        f"FROM python@{DIGEST}",
        "FROM ${PYTHON_IMAGE}",
        f"FROM {TAG}@{DIGEST}\nFROM {TAG}@{DIGEST}",
        "",
    ],
    ids=["no digest", "short digest", "no tag", "a variable", "two images", "no image"],
)
def test_image_without_tag_and_digest_is_refused(
    tree: Path, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / PINNED).write_text(f"{line}\n")
    with pytest.raises(Unpinned, match=r"compose/base/Dockerfile"):
        base_image(tree)
    monkeypatch.setattr(module, "base_image", lambda: base_image(tree))
    assert main() == 1
    assert capsys.readouterr().out == ""


def test_another_tag_than_that_of_local_builds_is_refused(tree: Path) -> None:
    (tree / DOCKERFILE).write_text("ARG PYTHON_IMAGE=python:3.14-slim-bookworm\n")
    with pytest.raises(Unpinned, match="change both to one tag"):
        base_image(tree)
