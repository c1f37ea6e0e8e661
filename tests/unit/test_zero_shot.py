"""Zero-shot bundles: tiny two-tower models, whose labels are folded into the graph."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from core.bundles.bundle import BundleManifest
from models.bundle_writer import write_bundle
from models.export_manifest import NotExportable
from models.onnx_graph import run
from models.zero_shot import fold, prompts_of, read_labels
from tests.support.bundles import COLOURS
from tests.support.pictures import picture
from worker.inference.classifier import Classifier

SIDE, WIDTH = 8, 3
LABELS = ["red", "green", "blue"]
SCALE, BIAS = 20.0, -10.0


def model_of(graph: onnx.GraphProto, opset: int = 18) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def image_tower(batch: str | int = "batch") -> onnx.ModelProto:
    """The mean colour of an image, ten times as long as the text's: the length must not matter.

    A tensor inside has the name of an output of the bundle, as in exported towers.
    """
    return model_of(
        helper.make_graph(
            [
                helper.make_node("ReduceMean", ["pixels", "axes"], ["embedding"], keepdims=0),
                helper.make_node("Mul", ["embedding", "logits"], ["vectors"]),
            ],
            "images",
            [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
            [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, [batch, WIDTH])],
            [
                numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
                numpy_helper.from_array(np.array(10, np.float32), "logits"),
            ],
        )
    )


def text_tower() -> onnx.ModelProto:
    """The sum of the vectors of a text's words, of different lengths. Other words are zero."""
    words = ["a", "photo", "of", *COLOURS]
    table = np.array([COLOURS.get(word, (0, 0, 0)) for word in words], np.float32)
    table *= np.arange(1, len(words) + 1, dtype=np.float32)[:, np.newaxis]
    return model_of(
        helper.make_graph(
            [
                helper.make_node("Gather", ["table", "tokens"], ["words"]),
                helper.make_node("ReduceSum", ["words", "axis"], ["vectors"], keepdims=0),
            ],
            "texts",
            [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "length"])],
            [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", WIDTH])],
            [
                numpy_helper.from_array(table, "table"),
                numpy_helper.from_array(np.array([1], np.int64), "axis"),
            ],
        )
    )


def encoded(prompts: list[str]) -> NDArray[np.float32]:
    words = ["a", "photo", "of", *COLOURS]
    tokens = np.array([[words.index(word) for word in prompt.split()] for prompt in prompts])
    session = ort.InferenceSession(
        text_tower().SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (vectors,) = session.run(["vectors"], {"tokens": tokens})
    return np.asarray(vectors, np.float32)


def folded(bias: float | None = None, **tower: Any) -> onnx.ModelProto:
    return fold(image_tower(**tower), encoded(prompts_of(LABELS)), scale=SCALE, bias=bias)


def cosines(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Independently of the graph."""
    images = pixels.mean(axis=(2, 3), dtype=np.float64)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = np.array([COLOURS[label] for label in LABELS])
    return np.asarray(images @ texts.T / np.linalg.norm(texts, axis=1))


def noise(images: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).random((images, 3, SIDE, SIDE)).astype(np.float32)


def bundle(folder: Path, model: onnx.ModelProto, kind: str) -> Classifier:
    manifest = BundleManifest.model_validate(
        {
            "name": "words",
            "input": {"name": "pixels", "height": SIDE, "width": SIDE},
            "resize": {"method": "stretch"},
            "mean": (0, 0, 0),
            "std": (1, 1, 1),
            "outputs": {"scores": kind, "kind": kind, "embedding": "embedding"},
            "opset": 18,
        }
    )
    folder.mkdir()
    written = write_bundle(folder, model, manifest, LABELS)
    return Classifier(written, max_pixels=10**6, labels_per_image=3)


def test_clip_gives_scaled_cosines_as_logits() -> None:
    pixels = noise(4)
    logits, embedding = run(folded(), pixels, ["logits", "embedding"])
    assert logits == pytest.approx(SCALE * cosines(pixels), rel=1e-4)
    assert np.linalg.norm(embedding, axis=1) == pytest.approx(np.ones(4), rel=1e-5)


def test_siglip_gives_independent_probabilities() -> None:
    pixels = noise(4)
    (found,) = run(folded(BIAS), pixels, ["probabilities"])
    assert found == pytest.approx(1 / (1 + np.exp(-(SCALE * cosines(pixels) + BIAS))), rel=1e-4)


def test_bundle_of_clip_classifies_with_the_words(tmp_path: Path) -> None:
    classifier = bundle(tmp_path / "clip", folded(), "logits")
    assert classifier.free_batch
    for label, colour in (("red", (220, 20, 20)), ("blue", (20, 20, 220))):
        found = classifier.classify(picture(1, colour))
        assert found.best == label
        assert sum(each.confidence for each in found.annotations) == pytest.approx(1)


def test_bundle_of_siglip_names_several_labels_or_none(tmp_path: Path) -> None:
    classifier = bundle(tmp_path / "siglip", folded(BIAS), "probabilities")

    def likely(colour: tuple[int, int, int]) -> set[str]:
        found = classifier.classify(picture(1, colour))
        return {each.label for each in found.annotations if each.confidence > 0.5}

    assert likely((220, 220, 20)) == {"red", "green"}
    assert likely((220, 20, 20)) == {"red"}
    assert likely((0, 0, 0)) <= set(LABELS)  # a vector of length zero is no division by zero


def test_fixed_batch_stays_fixed() -> None:
    model = folded(batch=1)
    assert [each.type.tensor_type.shape.dim[0].dim_value for each in model.graph.output] == [1, 1]


def test_image_tower_is_unchanged() -> None:
    tower = image_tower()
    before = tower.SerializeToString()
    fold(tower, encoded(LABELS), scale=SCALE)
    assert tower.SerializeToString() == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"texts": np.ones((2, 4), np.float32)}, "differ in length"),
        ({"texts": np.ones(3, np.float32)}, "no finite vector"),
        ({"texts": np.full((2, 3), np.nan, np.float32)}, "no finite vector"),
        ({"texts": np.eye(3, dtype=np.float32)[[0, 1]] * [[1], [0]]}, "length zero"),
        ({"scale": 0.0}, "no usable scale"),
        ({"scale": float("inf")}, "no usable scale"),
        ({"bias": float("nan")}, "no usable scale or bias"),
        ({"tower": "old"}, "opset 13"),
    ],
)
def test_unusable_towers_are_refused(change: dict[str, Any], reason: str) -> None:
    tower = image_tower()
    if change.pop("tower", ""):
        tower.opset_import[0].version = 12
    values = {"texts": encoded(LABELS), "scale": SCALE, **change}
    with pytest.raises(NotExportable, match=reason):
        fold(tower, **values)


def test_labels_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("cat\n\n  hot   dog \n", encoding="utf-8")
    assert read_labels(file) == ["cat", "hot dog"]
    for text, reason in (
        ("cat\n", "fewer than two"),
        ("cat\ncat\n", "'cat' twice"),
        (f"cat\n{'x' * 201}\n", "more than 200 characters"),
    ):
        file.write_text(text)
        with pytest.raises(NotExportable, match=reason):
            read_labels(file)
    with pytest.raises(NotExportable, match="cannot be read"):
        read_labels(tmp_path / "nowhere.txt")


def test_template_has_one_place_for_the_label() -> None:
    assert prompts_of(["cat"], "a drawing of {}, {curly}") == ["a drawing of cat, {curly}"]
    for template in ("a photo", "{} and {}"):
        with pytest.raises(NotExportable, match="once"):
            prompts_of(["cat"], template)
