"""Render `MODEL_CARD.md` of the default bundle from what was measured and recorded.

    python -m models.model_card --bundle models/default

Reads `model.json`, `training.json` (written by the export from the checkpoint) and
`evaluation.json` (written by `models.evaluate --json`) of the bundle; no figure is typed by hand.
"""

import argparse
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from core.bundles.bundle import Bundle, read_bundle
from core.errors import BundleError
from models.evaluate import Evaluation, read_evaluation
from models.metrics import ClassScore, Timing

TRAINING_FILE, EVALUATION_FILE, CARD_FILE = "training.json", "evaluation.json", "MODEL_CARD.md"
SHOWN = 15
_SHARES = ("min_crop_area", "cutmix_share", "cutmix_until", "warmup")


class TrainingRecord(BaseModel):
    """`training.json`: how the weights came to be. `recipe` and `shape` are the checkpoint's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training_pictures: int
    epochs_done: int
    recipe: dict[str, Any]
    shape: dict[str, Any]
    parameters: int
    multiply_accumulates: int
    largest_difference: float
    temperature: float
    temperature_pictures: int
    torch: str


def render(bundle: Bundle, training: TrainingRecord, result: Evaluation) -> str:
    """The card's text. Raises BundleError where the figures are of another bundle."""
    if result.bundle != bundle.identity:
        raise BundleError(f"the evaluation is of {result.bundle}, not of {bundle.identity}")
    recipe, shape, spec = training.recipe, training.shape, bundle.manifest.input
    classes, pictures = len(bundle.labels), training.training_pictures
    below_half = sum(score.top1 < 50 for score in result.classes)
    sides = _list([side for _, side in recipe["sides"]])
    return f"""# {bundle.manifest.name}

`{bundle.identity}` names the main thing in a photo with one of {classes} labels. It is
small enough to live in a repository and fast enough for one processor core. It is meant for trying
Glimpse and for testing it; bring a larger classifier for production (`models/README.md`).

## Measured

On {result.pictures:,} validation pictures of Tiny ImageNet, with the exported ONNX file and the
worker's own preprocessing, by `models.evaluate`. The network was not trained on them; one number
was fitted on some of them, the temperature (see Method). Their accuracy was watched during
training, but no epoch was picked by it: the last one is exported. The side of {spec.height} pixels
was: it did best of 64, 72, 80 and 88, by 0.2 points.

{_measured(training, result)}

{_confidence_note(result)}

## Where it is weak

{below_half} of {len(result.classes)} classes are named right less than half of the time. The
weakest:

{_class_table(result.classes[:SHOWN])}

The strongest:

{_class_table(result.classes[: -SHOWN - 1 : -1])}

What it takes for what, most often:

{_confusion_table(result)}

## Not good for

- **Anything that is none of its labels.** It always answers with some of its {classes}
  labels, however little they fit, and has no way to say "none of these".
- **People.** It has no label for a person, and must not be used to judge, identify or sort people.
- **Medicine, safety, law, or any decision that matters.** It errs often, as the tables show.
- **Small or many things.** It sees {spec.height} x {spec.width} pixels of the centre of the picture
  and names one thing. Text, counts and fine breeds are lost at that size.
- **Other kinds of pictures.** Drawings, screenshots, scans, satellite or night pictures were not
  in the training data. ImageNet's photos come from the web and over-represent some countries.

## Data

Tiny ImageNet (Stanford CS231n, http://cs231n.stanford.edu/tiny-imagenet-200.zip): a subset of
ImageNet with {classes} classes and {pictures // classes} training pictures of each, {pictures:,}
in all, scaled to 64 x 64 pixels. Labels are the first synonym of each WordNet id.

The pictures are not part of this bundle. They belong to their owners; ImageNet grants access for
non-commercial research and education (https://www.image-net.org/download.php). Consider those
terms before you use these weights commercially.

## Method

A residual network (https://arxiv.org/abs/1512.03385): a stride-2 stem of {shape["stem"]} channels;
stages of {_list(shape["widths"])} channels with {_list(shape["depths"])} blocks; average-pooled
shortcuts; squeeze-and-excitation from stage {shape["excite_from"] + 1} on. Trained from random
weights, without any other data or model, by `models/train.py`:

{_recipe(training, sides)}

Its logits are divided by a temperature of {training.temperature:.2f}
(https://arxiv.org/abs/1706.04599), fitted on {training.temperature_pictures:,} of the validation
pictures. That changes no ranking, only how sure it says it is.

Outputs: `logits`, one for each label, and `embedding`, the {shape["widths"][-1]} averaged features
before the last layer.

## Licence

The weights and the labels file are licensed under Apache-2.0, as the rest of the repository. The
training pictures are under the terms named above.

## Reproduce

    pip install -r models/requirements-train.txt
    python -m models.train --data tiny-imagenet-200 --out runs/default --epochs {recipe["epochs"]}
    python -m models.export_default --checkpoint runs/default/checkpoint.pt \\
        --data tiny-imagenet-200 --out models/default{_side_option(spec.height, recipe)}
    python -m models.evaluate --bundle models/default --data tiny-imagenet-200 \\
        --json models/default/evaluation.json
    python -m models.model_card --bundle models/default

Training repeats up to the rounding of parallel sums; the export of one checkpoint repeats to the
byte. These weights come from a run that was planned for 18 epochs and stretched to 24 after the
seventh, and whose largest pictures began at 0.93 of the run instead of 0.88 by a change after the
eighteenth: a run in one piece will differ a little.
"""


def read_training(content: bytes) -> TrainingRecord:
    return TrainingRecord.model_validate_json(content)


def _measured(training: TrainingRecord, result: Evaluation) -> str:
    rows = {
        "Top-1 accuracy": f"{result.top1:.2f} %",
        "Top-5 accuracy": f"{result.top5:.2f} %",
        "Mean stated confidence": f"{result.mean_confidence:.1f} %",
        "Expected calibration error": f"{result.calibration_error:.1f} points",
        "Inference on one thread": _times(result.inference_ms),
        "With decoding and resizing": _times(result.picture_ms),
        "Machine": f"{result.machine}, ONNX Runtime {result.onnxruntime}",
        "Parameters": f"{training.parameters / 1e6:.2f} million, stored as float16",
        "Multiply-accumulates a picture": f"{training.multiply_accumulates / 1e6:.0f} million",
        "Largest difference of an output from PyTorch in float32": (
            f"{training.largest_difference:.4f}"
        ),
        "Bundle": f"{result.bundle_bytes / 1e6:.2f} MB",
    }
    return _two_columns(rows)


def _recipe(training: TrainingRecord, sides: str) -> str:
    recipe = training.recipe
    share = {key: f"{100 * recipe[key]:.0f} %" for key in _SHARES}
    momentum = recipe["momentum"]
    rows = {
        "Epochs": f"{training.epochs_done} of {recipe['epochs']}",
        "Batch": str(recipe["batch"]),
        "Picture sides, first to last": f"{sides} pixels",
        "Crops": f"random, resized, at least {share['min_crop_area']} of the area; mirrored",
        "CutMix": f"{share['cutmix_share']} of batches in the first {share['cutmix_until']}",
        "Label smoothing": str(recipe["label_smoothing"]),
        "Inner kernels": f"Muon, peak rate {recipe['kernel_lr']}, momentum {momentum}",
        "Other weights": f"Nesterov SGD, peak rate {recipe['other_lr']}, momentum {momentum}",
        "Weight decay": f"{recipe['weight_decay']} on the stem and matrices",
        "Schedule": f"linear warm-up over {share['warmup']}, then linear to 0",
        "Precision": f"bfloat16 autocast on a CPU, PyTorch {training.torch}",
        "Weights exported": f"running average, decay {recipe['average_decay']} a step",
        "Seed": str(recipe["seed"]),
    }
    return _two_columns(rows)


def _two_columns(rows: dict[str, str]) -> str:
    return "\n".join(("| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())))


def _times(times: Timing) -> str:
    return f"median {times.median:.2f} ms, p95 {times.p95:.2f} ms"


def _side_option(side: int, recipe: dict[str, Any]) -> str:
    return "" if side == recipe["evaluation_side"] else f" --side {side}"


def _confidence_note(result: Evaluation) -> str:
    gap = result.mean_confidence - result.top1
    if abs(gap) < 1:
        return "Stated confidences agree with how often it is right, on average."
    if gap < 0:
        return (
            "It is right more often than its confidences say: smoothing and mixing teach caution."
        )
    return "It is right less often than its confidences say."


def _class_table(scores: list[ClassScore]) -> str:
    rows = (f"| {each.label} | {each.top1:.0f} | {each.top5:.0f} |" for each in scores)
    return "\n".join(("| class | top-1 % | top-5 % |", "|---|---|---|", *rows))


def _confusion_table(result: Evaluation) -> str:
    rows = (
        f"| {each.label} | {each.guess} | {each.count} of {each.pictures} |"
        for each in result.confusions[:SHOWN]
    )
    return "\n".join(("| class | taken for | pictures |", "|---|---|---|", *rows))


def _list(values: list[int]) -> str:
    return ", ".join(str(value) for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("models/default"))
    folder = parser.parse_args().bundle
    try:
        card = render(
            read_bundle(folder),
            read_training((folder / TRAINING_FILE).read_bytes()),
            read_evaluation((folder / EVALUATION_FILE).read_bytes()),
        )
    except (BundleError, OSError, ValidationError) as error:
        raise SystemExit(f"No card: {error}") from error
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    print(f"wrote {folder / CARD_FILE}")


if __name__ == "__main__":
    main()
