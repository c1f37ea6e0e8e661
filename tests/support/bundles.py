"""A tiny but real model bundle: it names the dominant colour of a picture."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from core.model_bundle import write_sums

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
