"""Clean, halve, count and write ONNX graphs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from core.bundles.bundle import BundleManifest, read_bundle
from models.bundle_writer import new_folder, write_bundle
from models.onnx_graph import (
    opset,
    run,
    without_traces,
)
from tests.support.bundles import write_colour_bundle

OUTPUTS = ["logits"]


def convolution(kernel: np.ndarray, *, spare: bool = False) -> onnx.ModelProto:
    """3 x 8 x 8 pixels, a strided 3x3 convolution to 4 x 4 x 4, and a matrix to 5 logits."""
    random = np.random.default_rng(0)
    weights = {
        "kernel": kernel.astype(np.float32),
        "bias": random.normal(size=4).astype(np.float32),
        "matrix": random.normal(size=(64, 5)).astype(np.float32),
    }
    if spare:
        weights["spare"] = np.ones((9, 9), np.float32)
    nodes = [
        helper.make_node(
            "Conv", ["pixels", "kernel", "bias"], ["features"], strides=[2, 2], pads=[1] * 4
        ),
        helper.make_node("Flatten", ["features"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture
def model() -> onnx.ModelProto:
    return convolution(np.random.default_rng(1).normal(size=(4, 3, 3, 3)))


def pixels(batch: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(batch, 3, 8, 8)).astype(np.float32)


def test_traces_of_the_exporter_go_and_the_function_stays(model: onnx.ModelProto) -> None:
    traced = convolution(np.random.default_rng(1).normal(size=(4, 3, 3, 3)), spare=True)
    traced.producer_name, traced.doc_string = "pytorch", "/home/someone/train.py"
    traced.graph.node[0].doc_string = "/home/someone/network.py line 3"
    traced.graph.node[0].name = "node_conv_17"
    helper.set_model_props(traced, {"stack": "/home/someone"})
    assert b"/home/someone" in traced.SerializeToString()
    cleaned, plain = without_traces(traced), without_traces(model)
    assert b"/home/someone" not in cleaned.SerializeToString()
    assert cleaned.SerializeToString(deterministic=True) == plain.SerializeToString(
        deterministic=True
    )
    onnx.checker.check_model(cleaned, full_check=True)
    assert np.array_equal(run(cleaned, pixels(2), OUTPUTS)[0], run(model, pixels(2), OUTPUTS)[0])


def test_opset_is_that_of_the_default_domain(model: onnx.ModelProto) -> None:
    model.opset_import.insert(0, helper.make_opsetid("com.example", 3))
    assert opset(model) == 18


def test_the_same_content_gives_the_same_identity(model: onnx.ModelProto, tmp_path: Path) -> None:
    source = read_bundle(write_colour_bundle(tmp_path / "colours"))
    identities = set()
    for name in ("one", "two"):
        with new_folder(tmp_path / name) as folder:
            write_bundle(folder, model, source.manifest, ["a", "é", "c", "d", "e"])
        bundle = read_bundle(tmp_path / name)
        identities.add(bundle.identity)
        assert bundle.labels == ("a", "é", "c", "d", "e")
        assert bundle.manifest == source.manifest
    assert len(identities) == 1
    changed = BundleManifest.model_validate({**source.manifest.model_dump(), "rescale": 0.5})
    with new_folder(tmp_path / "two") as folder:
        write_bundle(folder, model, changed, ["a", "é", "c", "d", "e"])
    assert read_bundle(tmp_path / "two").identity not in identities


def test_a_failed_export_leaves_the_earlier_bundle(tmp_path: Path) -> None:
    out = write_colour_bundle(tmp_path / "bundle")
    before = read_bundle(out).identity
    with pytest.raises(RuntimeError), new_folder(out) as folder:
        (folder / "model.onnx").write_bytes(b"half of a network")
        raise RuntimeError
    assert read_bundle(out).identity == before
    assert [each.name for each in tmp_path.iterdir()] == ["bundle"]


def test_folder_without_a_bundle_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "holiday.jpg").write_bytes(b"irreplaceable")
    with pytest.raises(FileExistsError, match="not a model bundle"), new_folder(out):
        pass
    assert (out / "holiday.jpg").exists()
