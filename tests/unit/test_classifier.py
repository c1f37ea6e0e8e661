"""ONNX Runtime around bundles of every permitted kind, and the refusal of all others."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from core.bundles.bundle import read_bundle, write_sums
from core.errors import BundleError
from tests.support.bundles import COLOURS, write_colour_bundle, write_failing_bundle, write_network
from tests.support.pictures import picture
from worker.errors import InferenceFailed
from worker.inference.classifier import Classifier

BLUE = picture(1, (20, 20, 220), format_="PNG")
MEANS = helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0)
PALETTE = np.array(list(COLOURS.values()), np.float32)
WEIGHTS = {"weight": 80 * PALETTE.T, "bias": -40 * (PALETTE**2).sum(axis=1)}
GEMM = helper.make_node("Gemm", ["means", "weight", "bias"], ["scores"])


def load(folder: Path, labels: int = 5) -> Classifier:
    return Classifier(read_bundle(folder), max_pixels=10**6, labels_per_image=labels)


def edit(folder: Path, **changes: object) -> Path:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    write_sums(folder)
    return folder


def network(folder: Path, layout: str = "NCHW", batch: int | str = "batch", **more: Any) -> Path:
    """The colour network in another shape, with `softmax` inside if its kind is probabilities."""
    axes, shape = ([2, 3], [3, 8, 8]) if layout == "NCHW" else ([1, 2], [8, 8, 3])
    nodes = [MEANS, GEMM]
    if more.get("outputs", {}).get("kind") == "probabilities":
        gemm = helper.make_node("Gemm", ["means", "weight", "bias"], ["logits"])
        nodes = [MEANS, gemm, helper.make_node("Softmax", ["logits"], ["scores"])]
    return write_network(
        folder,
        nodes=nodes,
        shape=[batch, *shape],
        initializers={"axes": np.array(axes, np.int64), **WEIGHTS},
        input={
            "name": "pixels",
            "layout": layout,
            "height": 8,
            "width": 8,
            "batch": batch if isinstance(batch, int) else None,
        },
        **more,
    )


def test_most_likely_labels_come_first(tmp_path: Path) -> None:
    notes = load(write_colour_bundle(tmp_path, sharpness=2.0)).classify(BLUE).annotations
    assert [note.index for note in notes] == [1, 2, 3, 4, 5]
    # By squared distance from (20, 20, 220): blue, grey, black, then the far ones.
    assert [note.label for note in notes][:3] == ["blue", "grey", "black"]
    assert all(type(note.confidence) is float for note in notes)
    assert all(a.confidence >= b.confidence for a, b in pairwise(notes))


def test_confidences_are_the_softmax(tmp_path: Path) -> None:
    notes = load(write_colour_bundle(tmp_path, sharpness=1.0), labels=6).classify(BLUE).annotations
    mean = np.array([20, 20, 220]) / 255
    distances = {name: ((mean - np.array(rgb)) ** 2).sum() for name, rgb in COLOURS.items()}
    total = sum(math.exp(-distance) for distance in distances.values())
    for note in notes:
        expected = math.exp(-distances[note.label]) / total
        assert note.confidence == pytest.approx(expected, rel=0.02)
    assert sum(note.confidence for note in notes) == pytest.approx(1.0, abs=1e-12)


def test_huge_logits_do_not_overflow(tmp_path: Path) -> None:
    notes = load(write_colour_bundle(tmp_path, sharpness=1e6)).classify(BLUE).annotations
    assert (notes[0].label, notes[0].confidence) == ("blue", 1.0)


@pytest.mark.parametrize("labels", [1, 3, 6, 100])
def test_number_of_labels_is_limited_by_setting_and_bundle(tmp_path: Path, labels: int) -> None:
    notes = load(write_colour_bundle(tmp_path), labels).classify(BLUE).annotations
    assert len(notes) == min(labels, len(COLOURS))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("batch", ["batch", 1])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_bundles_with_other_layouts_batches_and_outputs(
    tmp_path: Path, layout: str, batch: int | str, kind: str
) -> None:
    folder = network(tmp_path / "other", layout, batch, outputs={"scores": "scores", "kind": kind})
    notes = load(folder).classify(BLUE).annotations
    own = load(write_colour_bundle(tmp_path / "own")).classify(BLUE).annotations
    assert [note.label for note in notes] == [note.label for note in own]
    assert notes[0].confidence == pytest.approx(own[0].confidence, abs=1e-6)


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "input name": {"input": {"name": "image", "height": 8, "width": 8}},
    "input size": {"input": {"name": "pixels", "height": 9, "width": 8}},
    "layout": {"input": {"name": "pixels", "layout": "NHWC", "height": 8, "width": 8}},
    "batch of four": {"input": {"name": "pixels", "height": 8, "width": 8, "batch": 4}},
    "scores name": {"outputs": {"scores": "nothing", "kind": "logits"}},
    "embedding name": {"outputs": {"scores": "logits", "kind": "logits", "embedding": "x"}},
    "kind": {"outputs": {"scores": "logits", "kind": "probabilities"}},
    "scores are the embedding": {"outputs": {"scores": "embedding", "kind": "logits"}},
    "crop": {"resize": {"method": "crop"}},
}


@pytest.mark.parametrize("changes", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_manifest_that_contradicts_the_network_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = edit(write_colour_bundle(tmp_path), **changes)
    with pytest.raises(BundleError):
        load(folder)


def test_undeclared_fixed_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        load(edit(network(tmp_path, batch=2), input={"name": "pixels", "height": 8, "width": 8}))


@pytest.mark.parametrize("labels", ["red\n", "a\n" * 7])
def test_wrong_number_of_labels_is_refused(tmp_path: Path, labels: str) -> None:
    folder = write_colour_bundle(tmp_path)
    (folder / "labels.txt").write_text(labels)
    write_sums(folder)
    with pytest.raises(BundleError, match="number of scores"):
        load(folder)


@pytest.mark.parametrize("name", ["model.onnx", "model.json", "labels.txt"])
def test_altered_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_colour_bundle(tmp_path)
    with (folder / name).open("ab") as file:
        file.write(b"\n" if name == "model.json" else b"more\n")
    with pytest.raises(BundleError, match=name):
        load(folder)


def test_weights_in_a_second_file_are_refused(tmp_path: Path) -> None:
    """The bundle's identity does not cover them: two models would have one name."""
    folder = write_colour_bundle(tmp_path)
    model = onnx.load(folder / "model.onnx")
    where = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 50}
    onnx.save_model(model, folder / "model.onnx", **where)
    write_sums(folder)
    assert (folder / "weights.bin").exists()
    with pytest.raises(BundleError, match=r"model\.onnx has weights in another file"):
        load(folder)


def test_file_that_is_not_a_network_is_refused(tmp_path: Path) -> None:
    folder = write_colour_bundle(tmp_path)
    (folder / "model.onnx").write_bytes(b"no network")
    write_sums(folder)
    with pytest.raises(BundleError):
        load(folder)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_scores_that_are_not_finite_are_refused(tmp_path: Path, kind: str) -> None:
    """Black gives 0/1 and passes the warm-up; blue divides by zero."""
    folder = write_failing_bundle(tmp_path, outputs={"scores": "scores", "kind": kind})
    classifier = load(folder)
    with pytest.raises(InferenceFailed, match="not finite numbers"):
        classifier.classify(BLUE)


def test_probabilities_out_of_range_are_refused(tmp_path: Path) -> None:
    """All zeros while black, as in the warm-up; blue gives 80 and more."""
    folder = edit(
        write_network(
            tmp_path,
            nodes=[MEANS, helper.make_node("MatMul", ["means", "weight"], ["scores"])],
            shape=["batch", 3, 8, 8],
            initializers={"axes": np.array([2, 3], np.int64), "weight": WEIGHTS["weight"]},
        ),
        outputs={"scores": "scores", "kind": "probabilities"},
    )
    with pytest.raises(InferenceFailed, match="not probabilities"):
        load(folder).classify(BLUE)


def categorized(folder: Path, categories: dict[str, list[str]], sharpness: float = 2.0) -> Path:
    """The colour bundle with categories."""
    write_colour_bundle(folder, sharpness=sharpness)
    (folder / "categories.json").write_text(json.dumps(categories))
    return edit(folder)


def test_category_sums_its_labels_probabilities(tmp_path: Path) -> None:
    found = load(
        categorized(tmp_path, {"grey": ["neutral"], "black": ["neutral"], "red": ["warm"]}), 6
    ).classify(BLUE)
    by_label = {note.label: note.confidence for note in found.annotations}
    by_category = {note.label: note.confidence for note in found.categories}
    assert by_category["neutral"] == pytest.approx(by_label["grey"] + by_label["black"])
    assert by_category["warm"] == pytest.approx(by_label["red"])
    assert [note.index for note in found.categories] == [1, 2]
    assert found.categories[0].label == "neutral"


def test_narrower_category_comes_first_at_equal_percent(tmp_path: Path) -> None:
    every = ["red", "green", "blue", "white", "black", "grey"]
    categories = {label: ["anything"] for label in every} | {
        label: ["anything", "most"] for label in every[:5]
    }
    categories["blue"].append("sea")
    found = load(categorized(tmp_path, categories, sharpness=14)).classify(BLUE)
    assert [note.label for note in found.categories] == ["sea", "most", "anything"]
    assert 0.997 < found.categories[0].confidence < found.categories[2].confidence


def test_unlikely_categories_are_left_out(tmp_path: Path) -> None:
    folder = categorized(tmp_path, {"blue": ["sea"], "red": ["warm"]}, sharpness=14)
    assert [note.label for note in load(folder).classify(BLUE).categories] == ["sea"]


def test_independent_labels_sum_to_at_most_one(tmp_path: Path) -> None:
    folder = network(tmp_path, outputs={"scores": "scores", "kind": "probabilities"})
    weights = {"weight": np.zeros((3, 6), np.float32), "bias": np.full(6, 0.9, np.float32)}
    write_network(
        folder,
        nodes=[MEANS, GEMM],
        shape=["batch", 3, 8, 8],
        initializers={"axes": np.array([2, 3], np.int64), **weights},
        outputs={"scores": "scores", "kind": "probabilities"},
    )
    (folder / "categories.json").write_text(json.dumps({"red": ["any"], "blue": ["any"]}))
    edit(folder)
    (category,) = load(folder).classify(BLUE).categories
    assert category.confidence == 1.0


def test_bundle_without_categories_and_threshold_gives_neither(tmp_path: Path) -> None:
    found = load(write_colour_bundle(tmp_path)).classify(BLUE)
    assert (found.categories, found.confident) == ((), None)


@pytest.mark.parametrize(("margin", "confident"), [(-1e-6, True), (1e-6, False)])
def test_best_label_is_confident_from_the_threshold_on(
    tmp_path: Path, margin: float, confident: bool
) -> None:
    best = load(write_colour_bundle(tmp_path, sharpness=2.0)).classify(BLUE).annotations[0]
    edit(tmp_path, threshold=best.confidence + margin)
    assert load(tmp_path).classify(BLUE).confident is confident


@pytest.mark.parametrize(("margin", "confident"), [(-1e-6, True), (1e-6, False)])
def test_label_below_the_threshold_is_confident_if_its_narrowest_category_is(
    tmp_path: Path, margin: float, confident: bool
) -> None:
    every = ("red", "green", "blue", "white", "black")
    categories = {label: ["anything"] for label in every} | {
        label: ["dark", "anything"] for label in ("blue", "black")
    }
    folder = categorized(tmp_path, categories)
    found = load(folder).classify(BLUE)
    shares = {note.label: note.confidence for note in found.categories}
    assert found.annotations[0].label == "blue"
    assert found.annotations[0].confidence < shares["dark"] < shares["anything"]
    edit(folder, threshold=1.0, category_threshold=shares["dark"] + margin)
    assert load(folder).classify(BLUE).confident is confident


def test_category_threshold_needs_a_category_of_the_best_label(tmp_path: Path) -> None:
    folder = categorized(tmp_path, {"red": ["warm"]})
    edit(folder, threshold=1.0, category_threshold=0.01)
    assert load(folder).classify(BLUE).confident is False
