"""Cleans, folds and runs an ONNX graph, for every exporter."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

# A protocol buffer has at most 2 GiB, and a bundle has no second file for weights.
MAX_MODEL_BYTES = 2_000_000_000


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the exporter's metadata, so that equal weights give equal bytes.

    This removes source paths, stack traces, names of Python objects, inferred shapes, and
    initialisers that no node reads.
    """
    cleaned = onnx.ModelProto()
    cleaned.CopyFrom(model)
    for field in ("producer_name", "producer_version", "domain", "doc_string", "metadata_props"):
        cleaned.ClearField(field)
    graph = cleaned.graph
    graph.name = "classifier"
    for field in ("doc_string", "metadata_props", "value_info"):
        graph.ClearField(field)
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    graph.ClearField("initializer")
    for tensor in kept:
        tensor.ClearField("metadata_props")
        tensor.ClearField("doc_string")
    graph.initializer.extend(kept)
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    return cleaned


def with_padding_in_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold each Pad of zeros into the convolutions that read it, if possible.

    TensorFlow's "same" padding is asymmetric, so PyTorch needs a Pad node for it. ONNX does not,
    and a quantized graph is faster without one.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        readers = [node for node in graph.node if pad.output[0] in node.input]
        pads = _spatial_pads(pad, constants)
        if pads is None or not all(node.op_type == "Conv" for node in readers):
            continue
        for node in readers:
            own = next((a for a in node.attribute if a.name == "pads"), None)
            before = list(own.ints) if own is not None else [0] * len(pads)
            if own is not None:
                node.attribute.remove(own)
            total = [a + b for a, b in zip(before, pads, strict=True)]
            node.attribute.append(helper.make_attribute("pads", total))
            node.input[0] = pad.input[0]
        graph.node.remove(pad)
    return without_traces(folded)


def _spatial_pads(pad: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> list[int] | None:
    """The pads of the two spatial axes, or None if the node does anything else than add zeros."""
    mode = next((a.s for a in pad.attribute if a.name == "mode"), b"constant")
    value = constants.get(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.float32(0)
    pads = constants.get(pad.input[1])
    axes = len(pad.input) > 3 and bool(pad.input[3])
    if mode != b"constant" or value is None or value.any() or pads is None or axes:
        return None
    numbers = [int(each) for each in pads]
    if len(numbers) != 8 or any(numbers[place] for place in (0, 1, 4, 5)):
        return None
    return [*numbers[2:4], *numbers[6:8]]


def opset(model: onnx.ModelProto) -> int:
    """The version of the default operator set."""
    return int(
        next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    )


def run(model: onnx.ModelProto, pixels: np.ndarray, outputs: Sequence[str]) -> list[Any]:
    """The named outputs for `pixels`, by ONNX Runtime on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(list(outputs), {session.get_inputs()[0].name: pixels}))
