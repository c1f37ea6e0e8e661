"""Tiny real model bundles: one names the dominant colour of a picture, others are slow or fail."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from core.bundles.bundle import write_sums

COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    "grey": (0.5, 0.5, 0.5),
}
SIDE = 8


def write_colour_bundle(folder: Path, name: str = "colours", sharpness: float = 40.0) -> Path:
    """Write the bundle to `folder` and return it.

    The score of a colour falls with its squared distance to the picture's mean: linear in the
    mean, since the mean's own square is the same for every colour and drops out of the softmax.
    Another `sharpness` makes another model with another identity.
    """
    folder.mkdir(parents=True, exist_ok=True)
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    weight = (2 * sharpness * palette.T).astype(np.float32)
    bias = (-sharpness * (palette**2).sum(axis=1)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["pixels", "axes"], ["embedding"], keepdims=0),
            helper.make_node("Gemm", ["embedding", "weight", "bias"], ["logits"]),
        ],
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(COLOURS)]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3]),
        ],
        [
            numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "axes"),
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(bias, "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    manifest = {
        "name": name,
        "input": {"name": "pixels", "layout": "NCHW", "height": SIDE, "width": SIDE},
        "resize": {"method": "stretch", "resample": "box"},
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "outputs": {"scores": "logits", "kind": "logits", "embedding": "embedding"},
        "opset": 18,
    }
    (folder / "model.json").write_text(json.dumps(manifest, indent=2) + "\n")
    (folder / "labels.txt").write_text("".join(f"{colour}\n" for colour in COLOURS))
    write_sums(folder)
    return folder


def write_slow_bundle(folder: Path, rounds: int) -> Path:
    """A colour bundle whose inference takes as many matrix products as the picture is bright.

    A white picture takes `rounds` products, about a millisecond each. A black one takes none.
    """
    write_colour_bundle(folder, name="slow")
    model = onnx.load(folder / "model.onnx")
    graph = model.graph
    side = 256
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still_going"]),
            helper.make_node("MatMul", ["matrix_in", "identity"], ["matrix_out"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("round_number", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("matrix_in", TensorProto.FLOAT, [side, side]),
        ],
        [
            helper.make_tensor_value_info("still_going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("matrix_out", TensorProto.FLOAT, [side, side]),
        ],
    )
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.eye(side, dtype=np.float32), "identity"),
            numpy_helper.from_array(np.array(rounds, np.float32), "rounds"),
            numpy_helper.from_array(np.array(0, np.float32), "nothing"),
            numpy_helper.from_array(np.array(True), "yes"),
        ]
    )
    graph.node[-1].output[0] = "colour_logits"
    graph.node.extend(
        [
            helper.make_node("ReduceMean", ["pixels"], ["brightness"], keepdims=0),
            helper.make_node("Mul", ["brightness", "rounds"], ["product"]),
            helper.make_node("Cast", ["product"], ["trips"], to=TensorProto.INT64),
            helper.make_node("Loop", ["trips", "yes", "identity"], ["matrix"], body=body),
            helper.make_node("ReduceMean", ["matrix"], ["trace"], keepdims=0),
            helper.make_node("Mul", ["trace", "nothing"], ["zero"]),
            helper.make_node("Add", ["colour_logits", "zero"], ["logits"]),
        ]
    )
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    write_sums(folder)
    return folder


def write_network(
    folder: Path,
    *,
    nodes: list[onnx.NodeProto],
    shape: list[int | str],
    scores: int = len(COLOURS),
    initializers: dict[str, Any] | None = None,
    **manifest: object,
) -> Path:
    """A colour bundle with another network: `nodes` lead from `pixels` to `scores`.

    `manifest` replaces parts of `model.json`.
    """
    write_colour_bundle(folder)
    graph = helper.make_graph(
        nodes,
        "other",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], scores])],
        [numpy_helper.from_array(value, name) for name, value in (initializers or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    document = json.loads((folder / "model.json").read_text())
    document |= {"outputs": {"scores": "scores", "kind": "logits"}} | manifest
    (folder / "model.json").write_text(json.dumps(document))
    write_sums(folder)
    return folder


def write_failing_bundle(folder: Path, **manifest: Any) -> Path:
    """A bundle that loads, and whose scores are NaN for every picture that is not black.

    `manifest` replaces parts of `model.json`.
    """
    return write_network(
        folder,
        nodes=[
            helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
            helper.make_node("Gemm", ["means", "weight", "bias"], ["above"]),
            helper.make_node("ReduceMax", ["means"], ["brightest"], keepdims=0),
            helper.make_node("Ceil", ["brightest"], ["lit"]),
            helper.make_node("Sub", ["one", "lit"], ["below"]),
            helper.make_node("Div", ["above", "below"], ["scores"]),
        ],
        shape=["batch", 3, 8, 8],
        initializers={
            "axes": np.array([2, 3], np.int64),
            "weight": np.zeros((3, len(COLOURS)), np.float32),
            "bias": np.zeros(len(COLOURS), np.float32),
            "one": np.array(1, np.float32),
        },
        **manifest,
    )
