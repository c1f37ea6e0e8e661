"""Static quantization: small error, small file, and the same bytes each time."""

from collections import Counter

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.onnx_graph import run, with_padding_in_convolutions
from models.quantization import activation_ranges, quantized


def network(
    pads: list[int] | None = None, mode: str = "constant", value: float = 0.0
) -> onnx.ModelProto:
    """Pad, convolution, ReLU6, mean and a matrix, with drawn weights."""
    draw = np.random.default_rng(3)
    weights = {
        "pads": np.array(pads or [0, 0, 0, 0, 0, 0, 1, 1], np.int64),
        "value": np.array(value, np.float32),
        "kernel": draw.normal(0, 0.4, (8, 3, 3, 3)).astype(np.float32),
        "bias": draw.normal(0, 0.1, 8).astype(np.float32),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
        "axes": np.array([2, 3], np.int64),
        "matrix": draw.normal(0, 1, (8, 5)).astype(np.float32),
        "shift": draw.normal(0, 1, 5).astype(np.float32),
    }
    nodes = [
        helper.make_node("Pad", ["pixels", "pads", "value"], ["padded"], name="pad", mode=mode),
        helper.make_node(
            "Conv", ["padded", "kernel", "bias"], ["convolved"], name="convolve", strides=[2, 2]
        ),
        helper.make_node("Clip", ["convolved", "zero", "six"], ["clipped"], name="clip"),
        helper.make_node("ReduceMean", ["clipped", "axes"], ["mean"], name="mean", keepdims=0),
        helper.make_node("Gemm", ["mean", "matrix", "shift"], ["logits"], name="gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def pixels(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(0, 1, (count, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def ranges() -> dict[str, tuple[float, float]]:
    model = with_padding_in_convolutions(network())
    return activation_ranges(model, (each[None] for each in pixels(40)))


def test_ranges_are_the_extremes_of_each_tensor(ranges: dict[str, tuple[float, float]]) -> None:
    logits = run(with_padding_in_convolutions(network()), pixels(40), ["logits"])[0]
    for name, values in (("pixels", pixels(40)), ("logits", logits)):
        least, greatest = ranges[name]
        assert least == pytest.approx(values.min())
        assert greatest == pytest.approx(values.max())


@pytest.mark.parametrize("kept", [0, 1])
def test_quantized_graph_stays_close(kept: int, ranges: dict[str, tuple[float, float]]) -> None:
    model = with_padding_in_convolutions(network())
    small = quantized(model, ranges, float_convolutions=kept)
    want, got = (run(each, pixels(20), ["logits"])[0] for each in (model, small))
    assert np.abs(want - got).max() < 0.05 * np.abs(want).max()
    stored = {each.name: each.data_type for each in small.graph.initializer}
    assert (stored.get("kernel") == TensorProto.FLOAT) == bool(kept)
    assert TensorProto.INT8 in stored.values()


def test_same_input_gives_the_same_bytes(ranges: dict[str, tuple[float, float]]) -> None:
    model = with_padding_in_convolutions(network())
    first, second = (
        quantized(model, ranges).SerializeToString(deterministic=True) for _ in range(2)
    )
    assert first == second


def test_padding_moves_into_the_convolution() -> None:
    model = network()
    folded = with_padding_in_convolutions(model)
    assert Counter(node.op_type for node in folded.graph.node)["Pad"] == 0
    want, got = (run(each, pixels(3), ["logits"])[0] for each in (model, folded))
    assert np.abs(want - got).max() < 1e-5


@pytest.mark.parametrize(
    "changes",
    [{"mode": "reflect"}, {"value": 1.0}, {"pads": [0, 1, 0, 0, 0, -1, 1, 1]}],
    ids=["reflected", "not zeros", "channels"],
)
def test_other_padding_stays(changes: dict[str, object]) -> None:
    folded = with_padding_in_convolutions(network(**changes))  # type: ignore[arg-type]
    assert Counter(node.op_type for node in folded.graph.node)["Pad"] == 1
