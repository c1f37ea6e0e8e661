"""Bundles as files: their identity, their verification, and invalid manifests."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.bundles.bundle import read_bundle, verify_bundle, write_sums
from core.domain.records import MODEL
from core.errors import BundleError
from tests.support.bundles import COLOURS, write_colour_bundle

SUMMED = ("model.onnx", "model.json", "labels.txt")


def test_the_identity_is_a_digest_over_the_three_files(tmp_path: Path) -> None:
    folder = write_colour_bundle(tmp_path)
    lines = "".join(hashlib.sha256((folder / n).read_bytes()).hexdigest() + "\n" for n in SUMMED)
    bundle = read_bundle(folder)
    assert bundle.identity == "colours@" + hashlib.sha256(lines.encode()).hexdigest()[:12]
    assert MODEL.fullmatch(bundle.identity)
    assert bundle.labels == tuple(COLOURS)


def test_the_identity_depends_neither_on_the_sums_file_nor_on_the_path(tmp_path: Path) -> None:
    folder = write_colour_bundle(tmp_path / "a")
    identity = read_bundle(folder).identity
    shutil.copytree(folder, tmp_path / "b")
    (tmp_path / "b" / "SHA256SUMS").unlink()
    bundle = read_bundle(str(tmp_path / "b"))
    assert bundle.identity == identity
    verify_bundle(bundle)


@pytest.mark.parametrize("name", SUMMED)
def test_each_file_changes_the_identity(tmp_path: Path, name: str) -> None:
    folder = write_colour_bundle(tmp_path)
    before = read_bundle(folder).identity
    with (folder / name).open("ab") as file:
        file.write(b"\n" if name == "model.json" else b"more\n")
    with pytest.raises(BundleError, match=name):
        verify_bundle(read_bundle(folder))
    write_sums(folder)
    verify_bundle(read_bundle(folder))
    assert read_bundle(folder).identity != before


def test_the_identity_can_be_read_without_the_weights(tmp_path: Path) -> None:
    folder = write_colour_bundle(tmp_path)
    before = read_bundle(folder).identity
    (folder / "model.onnx").unlink()
    bundle = read_bundle(folder)
    assert bundle.identity == before
    with pytest.raises(BundleError, match=r"model\.onnx"):
        verify_bundle(bundle)


MANIFESTS: dict[str, dict[str, Any]] = {
    "unknown field": {"colour": "blue"},
    "name with a slash": {"name": "a/b"},
    "empty name": {"name": ""},
    "no height": {"input": {"name": "x", "width": 8}},
    "zero width": {"input": {"name": "x", "height": 8, "width": 0}},
    "unknown layout": {"input": {"name": "x", "height": 8, "width": 8, "layout": "CHWN"}},
    "unknown method": {"resize": {"method": "squeeze"}},
    "unknown filter": {"resize": {"method": "stretch", "resample": "hamming"}},
    "two channels": {"mean": [0.0, 0.0]},
    "unknown kind": {"outputs": {"scores": "logits", "kind": "odds"}},
}


@pytest.mark.parametrize("changes", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_an_invalid_manifest_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write_colour_bundle(tmp_path) / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(BundleError):
        read_bundle(tmp_path)


@pytest.mark.parametrize("labels", [b"", b"red\n\nblue\n", b"red\n \nblue\n", b"\xff\xfe\n"])
def test_invalid_labels_are_refused(tmp_path: Path, labels: bytes) -> None:
    (write_colour_bundle(tmp_path) / "labels.txt").write_bytes(labels)
    with pytest.raises(BundleError):
        read_bundle(tmp_path)


@pytest.mark.parametrize("missing", ["model.json", "labels.txt"])
def test_a_missing_file_is_refused(tmp_path: Path, missing: str) -> None:
    (write_colour_bundle(tmp_path) / missing).unlink()
    with pytest.raises(BundleError):
        read_bundle(tmp_path)


@pytest.mark.parametrize("sums", ["", "nonsense", "ab  model.onnx\n"])
def test_sums_that_lack_a_file_are_refused(tmp_path: Path, sums: str) -> None:
    (write_colour_bundle(tmp_path) / "SHA256SUMS").write_text(sums)
    with pytest.raises(BundleError, match="SHA256SUMS"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("uri", ["", "/nowhere", "gs://bucket/bundle", "pyproject.toml"])
def test_a_uri_that_is_not_a_bundle_folder_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        read_bundle(uri or tmp_path)


CATEGORIES = {"red": ["warm", "colour"], "blue": ["cold", "colour"]}


def write_categories(folder: Path, categories: object = CATEGORIES) -> Path:
    (folder / "categories.json").write_text(json.dumps(categories))
    write_sums(folder)
    return folder


def test_categories_are_part_of_the_bundle_and_of_its_identity(tmp_path: Path) -> None:
    folder = write_colour_bundle(tmp_path)
    before = read_bundle(folder)
    assert before.categories == {}
    bundle = read_bundle(write_categories(folder))
    assert bundle.categories == {"red": ("warm", "colour"), "blue": ("cold", "colour")}
    assert bundle.identity != before.identity
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "SHA256SUMS").unlink()
    assert read_bundle(tmp_path / "copy").identity == bundle.identity


def test_altered_or_missing_categories_are_refused(tmp_path: Path) -> None:
    folder = write_categories(write_colour_bundle(tmp_path))
    bundle = read_bundle(folder)
    (folder / "categories.json").write_text(json.dumps({"red": ["cold"]}))
    with pytest.raises(BundleError, match=r"categories\.json"):
        verify_bundle(bundle)
    (folder / "categories.json").unlink()
    with pytest.raises(BundleError, match=r"categories\.json"):
        verify_bundle(bundle)


def test_categories_that_the_sums_do_not_list_are_refused(tmp_path: Path) -> None:
    folder = write_colour_bundle(tmp_path)
    (folder / "categories.json").write_text(json.dumps(CATEGORIES))
    with pytest.raises(BundleError, match=r"does not list categories\.json"):
        read_bundle(folder)


@pytest.mark.parametrize(
    "categories",
    [["red"], {"red": "warm"}, {"red": [""]}, {"red": [1]}, {"purple": ["warm"]}, {"red": None}],
)
def test_invalid_categories_are_refused(tmp_path: Path, categories: object) -> None:
    folder = write_categories(write_colour_bundle(tmp_path), categories)
    with pytest.raises(BundleError, match=r"categories\.json"):
        read_bundle(folder)


@pytest.mark.parametrize(("threshold", "valid"), [(0, True), (0.5, True), (1, True), (1.1, False)])
def test_threshold_is_a_probability(tmp_path: Path, threshold: float, valid: bool) -> None:
    folder = write_colour_bundle(tmp_path)
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threshold": threshold}))
    write_sums(folder)
    if valid:
        assert read_bundle(folder).manifest.threshold == threshold
    else:
        with pytest.raises(BundleError, match="threshold"):
            read_bundle(folder)


def test_category_threshold_needs_a_threshold(tmp_path: Path) -> None:
    folder = write_colour_bundle(tmp_path)
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"category_threshold": 0.9}))
    write_sums(folder)
    with pytest.raises(BundleError, match="category_threshold needs a threshold"):
        read_bundle(folder)


def test_byte_order_mark_is_not_part_of_the_first_label(tmp_path: Path) -> None:
    """Editors on Windows write one."""
    folder = write_colour_bundle(tmp_path)
    text = (folder / "labels.txt").read_text().replace("\n", "\r\n")
    (folder / "labels.txt").write_text(text, encoding="utf-8-sig", newline="")
    write_sums(folder)
    assert read_bundle(folder).labels == tuple(COLOURS)


@pytest.mark.parametrize(("length", "valid"), [(200, True), (201, False)])
def test_label_that_no_list_can_filter_by_is_refused(
    tmp_path: Path, length: int, valid: bool
) -> None:
    """The parameter `label` of the list of images has the same limit."""
    folder = write_colour_bundle(tmp_path)
    (folder / "labels.txt").write_text("\n".join(["x" * length, *list(COLOURS)[1:]]))
    write_sums(folder)
    if valid:
        assert read_bundle(folder).labels[0] == "x" * length
    else:
        with pytest.raises(BundleError, match="a label of more than 200 characters"):
            read_bundle(folder)
