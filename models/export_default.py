"""Export a training checkpoint to the default bundle: ONNX, manifest, labels, provenance.

    python -m models.export_default --checkpoint runs/default/checkpoint.pt \
        --data tiny-imagenet-200 --out models/default

The averaged weights are exported, with batch normalisation folded into the convolutions, one
temperature folded into the last layer so that confidences mean what they say, and weights stored as
float16. The ONNX file is compared with PyTorch before anything is written, and
the same checkpoint always gives the same bytes. Needs PyTorch (`models/requirements-train.txt`).
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from core.bundles.bundle import (
    Bundle,
    BundleManifest,
    InputSpec,
    OutputSpec,
    ResizeRule,
    read_bundle,
)
from models import tiny_imagenet
from models.bundle_writer import folder_bytes, new_folder, write_bundle, write_json
from models.calibration import temperature
from models.evaluate import MAX_PIXELS
from models.network import NetworkShape, ResidualNetwork
from models.onnx_export import onnx_of
from models.onnx_graph import (
    multiply_accumulates,
    opset,
    run,
    with_half_weights,
)
from models.train import MEAN, STD
from worker.inference.preprocessing import Preprocessor

NAME = "tiny-imagenet-resnet"
SIDE = 80
OUTPUTS = ("logits", "embedding")
TRAINING_FILE = "training.json"
CALIBRATION_SHARE = 2  # every second validation picture tells how sure to be
BATCH = 100

# Largest accepted difference between ONNX Runtime and PyTorch in float32. Logits span about 10;
# float16 keeps 11 bits of each weight, which costs a few thousandths (measured).
EXACT_TOLERANCE = 1e-3
HALF_TOLERANCE = 5e-2


def averaged_network(checkpoint: dict[str, Any]) -> ResidualNetwork:
    """The network with the averaged weights, ready to classify."""
    shape: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in checkpoint["shape"].items()
    }
    network = ResidualNetwork(NetworkShape(**shape))
    prefix = "module."
    network.load_state_dict(
        {
            name.removeprefix(prefix): weight
            for name, weight in checkpoint["average"].items()
            if name.startswith(prefix)
        }
    )
    return network.eval()


def folded(network: ResidualNetwork) -> ResidualNetwork:
    """A copy without batch normalisation: its scale and shift live in the convolutions."""
    lean = copy.deepcopy(network)
    lean.stem[0] = fuse_conv_bn_eval(lean.stem[0], lean.stem[1])
    lean.stem[1] = nn.Identity()
    for block in lean.blocks:
        block.conv1, block.norm1 = fuse_conv_bn_eval(block.conv1, block.norm1), nn.Identity()
        block.conv2, block.norm2 = fuse_conv_bn_eval(block.conv2, block.norm2), nn.Identity()
        if isinstance(block.shortcut, nn.Sequential):
            block.shortcut[1] = fuse_conv_bn_eval(block.shortcut[1], block.shortcut[2])
            block.shortcut[2] = nn.Identity()
    return lean.eval()


@torch.no_grad()
def fitted_temperature(
    network: nn.Module, manifest: BundleManifest, data: Path
) -> tuple[float, int]:
    """The temperature, in hundredths, and the number of validation pictures that it was fitted on.

    The pictures go through the worker's own preprocessing.
    """
    files, truth = tiny_imagenet._listing(data, "val")
    files, truth = files[::CALIBRATION_SHARE], truth[::CALIBRATION_SHARE]
    preprocessor = Preprocessor(manifest, MAX_PIXELS)
    logits = []
    for begin in range(0, len(files), BATCH):
        tensors = [preprocessor.tensor(each.read_bytes()) for each in files[begin : begin + BATCH]]
        logits.append(network(torch.from_numpy(np.concatenate(tensors)))[0].numpy())
    return round(temperature(np.concatenate(logits), np.array(truth)), 2), len(files)


@torch.no_grad()
def cooled(network: ResidualNetwork, degrees: float) -> ResidualNetwork:
    """A copy whose logits are those of `network` divided by the temperature `degrees`."""
    copied = copy.deepcopy(network)
    copied.head.weight /= degrees
    copied.head.bias /= degrees
    return copied


@torch.no_grad()
def checked_difference(
    network: nn.Module, model: onnx.ModelProto, side: int, tolerance: float
) -> float:
    """max |ONNX - PyTorch| over both outputs, on random pictures in batches of one and of eight.

    SystemExit where it is above `tolerance`.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in (1, 8):
        # Smooth noise: single pixels of noise average out and would test little of the range.
        coarse = torch.randn(batch, 3, 10, 10, generator=generator)
        pixels = F.interpolate(coarse, size=(side, side), mode="bicubic")
        expected = network(pixels)
        actual = run(model, pixels.numpy(), OUTPUTS)
        for want, got in zip(expected, actual, strict=True):
            worst = max(worst, float(np.abs(want.numpy() - got).max()))
    if not worst <= tolerance:
        raise SystemExit(f"ONNX differs from PyTorch by {worst:.2g}, allowed {tolerance:.2g}")
    return worst


def export(checkpoint_file: Path, data: Path, out: Path, side: int = SIDE) -> Bundle:
    """Write the bundle to `out`, whole or not at all. SystemExit where the check fails."""
    checkpoint = torch.load(checkpoint_file, weights_only=True)
    network = averaged_network(checkpoint)
    labels = tiny_imagenet.class_labels(data)
    training_pictures = len(tiny_imagenet._listing(data, "train")[0])
    if len(labels) != network.shape.classes:
        raise SystemExit(f"{data} has {len(labels)} classes, the checkpoint differs")
    # The opset is known only once there is a graph, and preprocessing does not ask for it.
    manifest = _manifest(side, version=1)
    degrees, fitted_on = fitted_temperature(network, manifest, data)
    network = cooled(network, degrees)
    sample = torch.zeros(2, 3, side, side)
    exact = onnx_of(folded(network), sample, OUTPUTS, free_batch=True)
    checked_difference(network, exact, side, EXACT_TOLERANCE)
    model = with_half_weights(exact)
    difference = checked_difference(network, model, side, HALF_TOLERANCE)
    with new_folder(out) as folder:
        write_bundle(folder, model, _manifest(side, opset(model)), labels)
        write_json(
            folder / TRAINING_FILE,
            {
                "training_pictures": training_pictures,
                "epochs_done": checkpoint["epoch"],
                "recipe": checkpoint["recipe"],
                "shape": checkpoint["shape"],
                "parameters": sum(weight.numel() for weight in network.parameters()),
                "multiply_accumulates": multiply_accumulates(exact),
                "largest_difference": round(difference, 6),
                "temperature": degrees,
                "temperature_pictures": fitted_on,
                "torch": torch.__version__,
            },
        )
    return read_bundle(out)


def _manifest(side: int, version: int) -> BundleManifest:
    return BundleManifest(
        name=NAME,
        input=InputSpec(name="pixels", layout="NCHW", height=side, width=side),
        resize=ResizeRule(method="crop", short_side=side, resample="bilinear"),
        mean=MEAN,
        std=STD,
        outputs=OutputSpec(scores="logits", kind="logits", embedding="embedding"),
        opset=version,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/default/checkpoint.pt"))
    parser.add_argument("--data", type=Path, required=True, help="the unpacked tiny-imagenet-200")
    parser.add_argument("--out", type=Path, default=Path("models/default"))
    parser.add_argument("--side", type=int, default=SIDE, help="input height and width in pixels")
    args = parser.parse_args()
    bundle = export(args.checkpoint, args.data, args.out, args.side)
    print(f"{bundle.identity}: {folder_bytes(args.out) / 1e6:.1f} MB in {args.out}")


if __name__ == "__main__":
    main()
