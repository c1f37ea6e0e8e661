"""`make bundle`: the manifest that it writes, and one line for each fault."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from core.bundles.bundle import Bundle, read_bundle
from core.errors import BundleError, GlimpseError
from models.check_bundle import check
from tests.support.bundles import COLOURS, write_colour_bundle, write_network
from tests.support.predictors import predicting, write_python_bundle


def bare(folder: Path, **network: object) -> Path:
    """A folder with an ONNX file and labels, and nothing else."""
    if network:
        write_network(folder, **network)  # type: ignore[arg-type]
    else:
        write_colour_bundle(folder)
    for name in ("model.json", "SHA256SUMS"):
        (folder / name).unlink()
    return folder


def test_onnx_file_and_labels_become_a_bundle(tmp_path: Path) -> None:
    bundle, found = check(bare(tmp_path / "My model"))
    assert isinstance(bundle, Bundle)
    assert bundle.manifest.name == "My-model"
    assert bundle.identity == read_bundle(tmp_path / "My model").identity
    spec, outputs = bundle.manifest.input, bundle.manifest.outputs
    assert (spec.name, spec.layout, spec.height, spec.width, spec.batch) == (
        *("pixels", "NCHW", 8, 8, None),
    )
    assert (outputs.scores, outputs.kind) == ("logits", "logits")
    assert found.best in COLOURS
    assert (tmp_path / "My model/SHA256SUMS").exists()


def test_probabilities_and_layout_are_recognised(tmp_path: Path) -> None:
    folder = bare(
        tmp_path / "keras",
        nodes=[
            helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
            helper.make_node("Gemm", ["means", "weight", "bias"], ["raw"]),
            helper.make_node("Softmax", ["raw"], ["scores"], axis=1),
        ],
        shape=[1, 8, 8, 3],
        initializers={
            "axes": np.array([1, 2], np.int64),
            "weight": np.ones((3, len(COLOURS)), np.float32),
            "bias": np.zeros(len(COLOURS), np.float32),
        },
    )
    bundle, _ = check(folder)
    assert isinstance(bundle, Bundle)
    spec = bundle.manifest.input
    assert (spec.layout, spec.height, spec.width, spec.batch) == ("NHWC", 8, 8, 1)
    assert bundle.manifest.outputs.kind == "probabilities"


def test_manifest_of_the_user_is_kept(tmp_path: Path) -> None:
    folder = write_colour_bundle(tmp_path / "colours")
    before = (folder / "model.json").read_text()
    (folder / "SHA256SUMS").write_text("wrong")
    bundle, found = check(folder)
    assert (folder / "model.json").read_text() == before
    assert found.annotations[0].confidence > 0
    assert bundle.identity == read_bundle(folder).identity


def test_python_bundle_is_summed(tmp_path: Path) -> None:
    folder = write_python_bundle(tmp_path)
    bundle, found = check(folder)
    assert bundle.identity.startswith("brightness@")
    assert json.loads(found.output) == {"size": [640, 480]}
    assert "predictor.py" in (folder / "SHA256SUMS").read_text()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("empty", "has neither model.onnx nor predictor.py."),
        ("no folder", "is not a folder."),
        ("no labels", "has no labels.txt: one label a line"),
        ("few labels", "has no output with 2 numbers, one for each line of labels.txt."),
        ("labels in Latin-1", "labels.txt is not UTF-8."),
        ("integers", "the input picture is a tensor(uint8), not float32."),
        ("two images", "has a fixed batch of 2."),
        ("no network", "ONNX Runtime cannot load it."),
        ("two files", "model.onnx has weights in another file. Save the network as one file."),
        ("wrong manifest", "model.json is invalid: mean: "),
        ("wrong output", "outputs are "),
        ("exception", "The predictor raised ValueError."),
        ("wrong number", "The predictor returned 2 predictions for 1 images."),
        ("requirement", "requirements.txt: no-such-package is not installed."),
    ],
)
def test_fault_is_named_in_one_line(tmp_path: Path, fault: str, reason: str) -> None:
    folder = tmp_path / "bundle"
    make_faulty(folder, fault)
    with pytest.raises(GlimpseError) as raised:
        check(folder)
    assert reason in raised.value.detail
    assert "\n" not in raised.value.detail
    assert isinstance(raised.value, BundleError) or fault in ("exception", "wrong number")


def declare(folder: Path, kind: int, shape: list[int | str]) -> None:
    """Let the network declare another input, which a Cast turns into the one that it needs."""
    model = onnx.load(folder / "model.onnx")
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("picture", kind, shape))
    cast = helper.make_node("Cast", ["picture"], ["pixels"], to=TensorProto.FLOAT)
    model.graph.node.insert(0, cast)
    onnx.save(model, folder / "model.onnx")


def make_faulty(folder: Path, fault: str) -> None:
    match fault:
        case "empty":
            folder.mkdir()
        case "no folder":
            pass
        case "labels in Latin-1":
            bare(folder)
            (folder / "labels.txt").write_bytes(b"caf\xe9\n" * len(COLOURS))
        case "integers":
            bare(folder)
            declare(folder, TensorProto.UINT8, ["batch", 3, 8, 8])
        case "two images":
            bare(folder)
            declare(folder, TensorProto.FLOAT, [2, 3, 8, 8])
        case "no labels":
            bare(folder)
            (folder / "labels.txt").unlink()
        case "few labels":
            bare(folder)
            (folder / "labels.txt").write_text("cat\ndog\n")
        case "no network":
            bare(folder)
            (folder / "model.onnx").write_bytes(b"x")
        case "two files":
            bare(folder)
            model = onnx.load(folder / "model.onnx")
            where = {"save_as_external_data": True, "location": "model.onnx.data"}
            onnx.save_model(model, folder / "model.onnx", **where, size_threshold=50)
        case "wrong manifest" | "wrong output":
            write_colour_bundle(folder)
            document = json.loads((folder / "model.json").read_text())
            document |= (
                {"mean": [0]}
                if fault == "wrong manifest"
                else {"outputs": {"scores": "x", "kind": "logits"}}
            )
            (folder / "model.json").write_text(json.dumps(document))
        case "exception":
            write_python_bundle(folder, predicting("int('x')"))
        case "wrong number":
            write_python_bundle(folder, predicting("[{'output': 1}] * 2"))
        case "requirement":
            write_python_bundle(folder)
            (folder / "requirements.txt").write_text("no-such-package\n")
