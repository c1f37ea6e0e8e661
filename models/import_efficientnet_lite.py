"""Make the default bundle from the public EfficientNet-Lite weights.

    python -m models.import_efficientnet_lite

Builds `models/default` from the weights and from `default_calibration.json`, which records what was
fitted on photos: the activation ranges, the temperature and the threshold. So the same packages
give the same bytes, without any photos. To fit them again:

    python -m models.import_efficientnet_lite --variant lite1 --calibrate PHOTOS --fit FOLDER ...

PHOTOS is a folder with photos of any kind, and each FOLDER is one that `models.photos` describes.
Needs PyTorch (`models/requirements-export.txt`).
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from core.bundles.bundle import (
    Bundle,
    BundleManifest,
    InputSpec,
    OutputSpec,
    ResizeRule,
    read_bundle,
)
from models.bundle_writer import folder_bytes, new_folder, write_bundle, write_json
from models.calibration import probabilities, temperature
from models.efficientnet_lite import OUTPUTS, VARIANTS, float_graph
from models.imagenet import read_labels
from models.metrics import precision_threshold
from models.model_card import read_evaluations, render
from models.onnx_graph import opset
from models.photos import Photo, check_labels, read_photos
from models.quantization import Ranges, activation_ranges, quantized
from worker.inference.preprocessing import Preprocessor

CALIBRATION_FILE = Path(__file__).with_name("default_calibration.json")
IDS_FILE = "wordnet_ids.txt"
CARD_FILE = "MODEL_CARD.md"
# The published preprocessing: crop the centre, size / (size + 32) of the shorter side; bicubic.
# https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/preprocessing.py
SIDES = {"lite0": 224, "lite1": 240, "lite2": 260}
CROP_PADDING = 32
MEAN, DEVIATION = 127.0, 128.0
# The stem and the first block. With them in int8, it agrees with float32 on 2 % fewer of the photos
# (measured), and no image is faster.
FLOAT_CONVOLUTIONS = 3
PRECISION = 0.8
# From this confidence of its narrowest category on, the best label is at worst a close relative.
CATEGORY_THRESHOLD = 0.99
LEAST_AGREEMENT = 0.97
MAX_PIXELS = 64_000_000
PHOTO_TYPES = (".jpeg", ".jpg", ".png", ".webp")


class Calibration(BaseModel):
    """What was fitted on photos. `ranges` are of the graph at temperature 1.

    `fit_photos` and `agreement` have a number for each set of photos; the latter is the share whose
    best label is the same in float32 and in int8.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: str
    temperature: float
    threshold: float
    calibration_photos: int
    fit_photos: tuple[int, ...]
    agreement: tuple[float, ...]
    ranges: dict[str, tuple[float, float]]


def bundle_manifest(
    variant: str, version: int = 18, threshold: float | None = None
) -> BundleManifest:
    """The manifest with the published preprocessing."""
    side = SIDES[variant]
    return BundleManifest(
        name=f"efficientnet-{variant}",
        input=InputSpec(name="pixels", layout="NCHW", height=side, width=side),
        resize=ResizeRule(method="crop", short_side=side + CROP_PADDING, resample="bicubic"),
        rescale=1.0,
        mean=(MEAN,) * 3,
        std=(DEVIATION,) * 3,
        outputs=OutputSpec(scores=OUTPUTS[0], kind="logits", embedding=OUTPUTS[1]),
        opset=version,
        threshold=threshold,
        category_threshold=None if threshold is None else CATEGORY_THRESHOLD,
    )


def int8_graph(variant: str, degrees: float, ranges: Ranges) -> onnx.ModelProto:
    """The quantized graph, with logits divided by the temperature `degrees`."""
    scaled = dict(ranges)
    least, greatest = ranges[OUTPUTS[0]]
    scaled[OUTPUTS[0]] = (least / degrees, greatest / degrees)
    exact = float_graph(variant, degrees)
    return quantized(exact, scaled, float_convolutions=FLOAT_CONVOLUTIONS)


def build(calibration: Calibration, out: Path) -> Bundle:
    """Write the bundle to `out`, completely or not at all."""
    labels = read_labels()
    model = int8_graph(calibration.variant, calibration.temperature, calibration.ranges)
    manifest = bundle_manifest(calibration.variant, opset(model), calibration.threshold)
    categories = {each.name: each.categories for each in labels if each.categories}
    with new_folder(out) as folder:
        bundle = write_bundle(folder, model, manifest, [each.name for each in labels], categories)
        ids = "".join(f"{each.wordnet_id}\n" for each in labels)
        (folder / IDS_FILE).write_text(ids, encoding="utf-8")
        card = render(bundle, calibration.model_dump(), read_evaluations())
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return read_bundle(out)


def calibrate(
    variant: str, calibration_photos: Sequence[Path], fit: Sequence[Sequence[Photo]]
) -> Calibration:
    """Fit ranges, temperature and threshold.

    SystemExit if int8 names another label than float32 for too many photos of the first set. The
    temperature fits the sets in which each photo has a right label. The threshold is the least that
    gives `PRECISION` at first place on each set by itself; a close relative counts as right.
    """
    exact = float_graph(variant)
    ranges = activation_ranges(exact, tensors(variant, calibration_photos))
    model = quantized(exact, ranges, float_convolutions=FLOAT_CONVOLUTIONS)
    names = [each.name for each in read_labels()]
    results = [_logits(model, variant, photos) for photos in fit]
    references = [_logits(exact, variant, photos) for photos in fit]
    right = [np.array([[name in x.labels for name in names] for x in photos]) for photos in fit]
    close = [
        np.array([[name in x.labels | x.relatives for name in names] for x in photos])
        for photos in fit
    ]
    pairs = zip(results, references, strict=True)
    agreement = tuple(float((a.argmax(1) == b.argmax(1)).mean()) for a, b in pairs)
    if agreement[0] < LEAST_AGREEMENT:
        raise SystemExit(f"int8 agrees with float32 on {agreement[0]:.1%} of the photos only")
    labelled = [each for each in zip(results, right, strict=True) if each[1].any(axis=1).all()]
    if not labelled:
        raise SystemExit("a set is needed in which each photo has a right label")
    degrees = temperature(*(np.concatenate(each) for each in zip(*labelled, strict=True)))
    thresholds = [_threshold(*each, degrees) for each in zip(results, close, strict=True)]
    return Calibration(
        variant=variant,
        temperature=degrees,
        threshold=round(max(thresholds) + 0.005, 2),
        calibration_photos=len(calibration_photos),
        fit_photos=tuple(map(len, fit)),
        agreement=tuple(round(each, 4) for each in agreement),
        ranges=ranges,
    )


def tensors(variant: str, files: Sequence[Path]) -> Iterator[NDArray[np.float32]]:
    """The network's input for each photo, by the worker's own preprocessing."""
    preprocessor = Preprocessor(bundle_manifest(variant), MAX_PIXELS)
    for file in files:
        yield preprocessor.tensor(file.read_bytes())


def _logits(model: onnx.ModelProto, variant: str, photos: Sequence[Photo]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    files = [photo.file for photo in photos]
    rows = [session.run([OUTPUTS[0]], {"pixels": x})[0] for x in tensors(variant, files)]
    return np.concatenate(rows)


def _threshold(logits: NDArray[np.float32], right: NDArray[np.bool_], degrees: float) -> float:
    shares = probabilities(logits, degrees)
    best = shares.argmax(axis=1)
    rows = np.arange(len(best))
    found = precision_threshold(shares[rows, best], right[rows, best], PRECISION)
    if found is None:
        raise SystemExit(f"no threshold is right for {PRECISION:.0%} of the photos")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("models/default"))
    parser.add_argument("--variant", choices=VARIANTS, default="lite1", help="with --calibrate")
    parser.add_argument("--calibrate", type=Path, help="a folder with photos of any kind")
    parser.add_argument("--fit", type=Path, nargs="+", help="folders with photos.tsv")
    args = parser.parse_args()
    if bool(args.calibrate) != bool(args.fit):
        parser.error("--calibrate and --fit go together")
    try:
        if args.calibrate:
            photos = sorted(x for x in args.calibrate.iterdir() if x.suffix.lower() in PHOTO_TYPES)
            fit = [read_photos(folder) for folder in args.fit]
            for each in fit:
                check_labels(each, tuple(label.name for label in read_labels()))
            found = calibrate(args.variant, photos, fit)
            write_json(CALIBRATION_FILE, found.model_dump())
        calibration = Calibration.model_validate_json(CALIBRATION_FILE.read_bytes())
        bundle = build(calibration, args.out)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(f"{bundle.identity}: {folder_bytes(args.out) / 1e6:.1f} MB in {args.out}")


if __name__ == "__main__":
    main()
