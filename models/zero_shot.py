"""Folds encoded labels into the image tower of a two-tower model such as CLIP.

A two-tower model compares an image with texts: each tower gives a vector, and their cosine is the
score. The vectors of the labels do not change, so they become a matrix in the graph, and the result
is an ordinary bundle.

- CLIP (https://arxiv.org/abs/2103.00020): the cosines times a scale are logits.
- SigLIP (https://arxiv.org/abs/2303.15343): the sigmoid of the cosines times a scale, plus a bias,
  are independent probabilities: several labels may apply, or none.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from core.bundles.bundle import MAX_LABEL_LENGTH
from models.export_manifest import NotExportable
from models.onnx_graph import opset

DEFAULT_TEMPLATE = "a photo of a {}"
LOGITS, PROBABILITIES, EMBEDDING = "logits", "probabilities", "embedding"
_MIN_OPSET = 13  # the first opset in which ReduceSum has its axes as an input
_EPSILON = 1e-12  # added to a norm, so that no image is divided by zero


def read_labels(file: Path) -> list[str]:
    """The labels of a file, one a line. Raises NotExportable."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NotExportable(f"{file} cannot be read as UTF-8") from error
    labels = [" ".join(line.split()) for line in lines if line.strip()]
    if len(labels) < 2:
        raise NotExportable(f"{file} has fewer than two labels")
    for label in labels:
        if labels.count(label) > 1:
            raise NotExportable(f"{file} has the label {label!r} twice")
        if len(label) > MAX_LABEL_LENGTH:
            raise NotExportable(f"{file} has a label of more than {MAX_LABEL_LENGTH} characters")
    return labels


def prompts_of(labels: Sequence[str], template: str = DEFAULT_TEMPLATE) -> list[str]:
    """The text to encode for each label. Raises NotExportable."""
    if template.count("{}") != 1:
        raise NotExportable("the template must have {} once, in place of the label")
    return [template.replace("{}", label) for label in labels]


def fold(
    tower: onnx.ModelProto,
    texts: NDArray[np.float32],
    *,
    scale: float,
    bias: float | None = None,
) -> onnx.ModelProto:
    """The classifier of an image tower and the vectors of its labels.

    `tower` has one output: a vector for each image. `texts` has a row for each label. `scale` is
    the factor of the cosines, not its logarithm. Without `bias` (CLIP) the outputs are `logits`
    and `embedding`, with it (SigLIP) `probabilities` and `embedding`. The embedding has length 1.
    Raises NotExportable.
    """
    _check(tower, texts, scale, bias)
    folded = onnx.ModelProto()
    folded.CopyFrom(tower)
    graph = folded.graph
    _free_names(graph)
    vector = graph.output[0]
    unit = texts / np.linalg.norm(texts.astype(np.float64), axis=1, keepdims=True)
    constants = {
        "zero_shot_axis": np.array([-1], np.int64),
        "zero_shot_epsilon": np.array(_EPSILON, np.float32),
        "zero_shot_labels": np.ascontiguousarray((scale * unit).T, np.float32),
    }
    scores = LOGITS if bias is None else "zero_shot_cosines"
    nodes = [
        helper.make_node("Mul", [vector.name, vector.name], ["zero_shot_squares"]),
        helper.make_node(
            "ReduceSum", ["zero_shot_squares", "zero_shot_axis"], ["zero_shot_sum"], keepdims=1
        ),
        helper.make_node("Sqrt", ["zero_shot_sum"], ["zero_shot_norm"]),
        helper.make_node("Max", ["zero_shot_norm", "zero_shot_epsilon"], ["zero_shot_length"]),
        helper.make_node("Div", [vector.name, "zero_shot_length"], [EMBEDDING]),
        helper.make_node("MatMul", [EMBEDDING, "zero_shot_labels"], [scores]),
    ]
    if bias is not None:
        constants["zero_shot_bias"] = np.array(bias, np.float32)
        nodes += [
            helper.make_node("Add", [scores, "zero_shot_bias"], ["zero_shot_sums"]),
            helper.make_node("Sigmoid", ["zero_shot_sums"], [PROBABILITIES]),
        ]
    batch, width = _batch_of(vector), texts.shape[1]
    name = LOGITS if bias is None else PROBABILITIES
    graph.node.extend(nodes)
    graph.initializer.extend(
        numpy_helper.from_array(value, constant) for constant, value in constants.items()
    )
    graph.ClearField("output")
    graph.output.extend(
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, len(texts)]),
            helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, [batch, width]),
        ]
    )
    try:
        onnx.checker.check_model(folded)
    except onnx.checker.ValidationError as error:
        raise NotExportable(f"the image tower cannot be extended: {error}") from error
    return folded


def _check(
    tower: onnx.ModelProto, texts: NDArray[np.float32], scale: float, bias: float | None
) -> None:
    if len(tower.graph.output) != 1:
        raise NotExportable("the image tower must have one output")
    if opset(tower) < _MIN_OPSET:
        raise NotExportable(f"the image tower needs opset {_MIN_OPSET} or later")
    if texts.ndim != 2 or not np.isfinite(texts).all():
        raise NotExportable("the text tower gives no finite vector for each label")
    if not np.linalg.norm(texts, axis=1).all():
        raise NotExportable("the text tower gives a vector of length zero")
    shape = tower.graph.output[0].type.tensor_type.shape.dim
    if len(shape) != 2 or shape[1].dim_value not in (0, texts.shape[1]):
        raise NotExportable("the vectors of images and texts differ in length")
    if not (np.isfinite(scale) and scale > 0 and (bias is None or np.isfinite(bias))):
        raise NotExportable("the model has no usable scale or bias")


def _free_names(graph: onnx.GraphProto) -> None:
    """Rename the tower's own tensors that have the name of an output of the result."""
    taken = {LOGITS, PROBABILITIES, EMBEDDING}
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name in taken:
                    names[place] = f"tower_{name}"
    for value in (*graph.initializer, *graph.value_info, *graph.output):
        if value.name in taken:
            value.name = f"tower_{value.name}"


def _batch_of(output: onnx.ValueInfoProto) -> str | int:
    """The batch axis of an output: its name if it is free."""
    axis = output.type.tensor_type.shape.dim[0]
    return axis.dim_value or axis.dim_param or "batch"
