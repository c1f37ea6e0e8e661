"""Static int8 quantization of an ONNX graph, from recorded activation ranges.

Weights become int8, one scale for each output channel. Activations become uint8, one scale for each
tensor. The graph keeps float operators between QuantizeLinear and DequantizeLinear nodes (QDQ),
which ONNX Runtime fuses into integer kernels when it loads the model. Needs `onnx`; no PyTorch.
"""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    CalibrationMethod,
    TensorData,
    TensorsData,
    create_calibrator,
)
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

OPERATORS = ("Conv", "Gemm", "Clip", "Add", "ReduceMean", "GlobalAveragePool")

# The least and the greatest value of each tensor over the calibration photos.
Ranges = dict[str, tuple[float, float]]


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # its package ships no types
    def __init__(self, name: str, batches: Iterable[NDArray[np.float32]]) -> None:
        self._name, self._batches = name, iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def activation_ranges(model: onnx.ModelProto, batches: Iterable[NDArray[np.float32]]) -> Ranges:
    """Run `model` on `batches` and record the range of each tensor that is quantized."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "float.onnx"
        onnx.save(model, file)
        calibrator = create_calibrator(
            file,
            list(OPERATORS),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Batches(model.graph.input[0].name, batches))
        found = calibrator.compute_data()
    return {
        name: (float(data.range_value[0].item()), float(data.range_value[1].item()))
        for name, data in sorted(found.data.items())
    }


def quantized(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    *,
    float_convolutions: int = 0,
) -> onnx.ModelProto:
    """The int8 graph of `model`. The same inputs give the same bytes.

    The first `float_convolutions` convolutions stay float32: they see the pixels, work on few
    channels, and lose more precision than all others together.
    """
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    data = {
        name: TensorData(lowest=np.float32(least), highest=np.float32(greatest))
        for name, (least, greatest) in ranges.items()
    }
    quantizer = QDQQuantizer(
        onnx.ModelProto.FromString(model.SerializeToString()),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[],
        nodes_to_exclude=convolutions[:float_convolutions],
        op_types_to_quantize=list(OPERATORS),
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    onnx.checker.check_model(result, full_check=True)
    return result
