"""Exports a PyTorch network to one clean ONNX graph. Needs PyTorch."""

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence

import onnx
import torch
from torch import Tensor, nn

from models.onnx_graph import without_traces

OPSET = 18


def onnx_of(
    network: nn.Module, pixels: Tensor, outputs: Sequence[str], *, free_batch: bool
) -> onnx.ModelProto:
    """The graph of `network` with the input `pixels`, all weights inside, float32.

    `pixels` is a sample. With `free_batch` it has at least two pictures, because the exporter
    treats a batch of one as a constant.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # The exporter reports its progress, and warns of what PyTorch and its own packages deprecate.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (pixels,),
            input_names=["pixels"],
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},) if free_batch else None,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("the exporter returned nothing")
        buffer = io.BytesIO()
        program.save(buffer)
    model = without_traces(onnx.load_model_from_string(buffer.getvalue()))
    onnx.checker.check_model(model, full_check=True)
    return model
