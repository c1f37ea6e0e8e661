"""Measure a bundle on labelled photos, with the worker's own preprocessing and ONNX Runtime.

    python -m models.evaluate --bundle models/default --photos FOLDER --name NAME --json FILE

`models.photos` describes the folder. Times are processor time on one thread, so that other programs
hardly change them. Needs no PyTorch.
"""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from core.bundles.bundle import MODEL_FILE, SUMMED_FILES, Bundle, read_bundle, verify_bundle
from core.errors import GlimpseError
from models.bundle_writer import write_json
from models.metrics import Timing, calibration_error, timing, top_k
from models.photos import Photo, check_labels, read_photos
from worker.inference.classifier import Classifier

MAX_PIXELS = 64_000_000
PLACES = 5
WARM_UP = 10


@dataclass(frozen=True)
class Evaluation:
    """What `models.evaluate` measures. Shares are in percent, times in milliseconds.

    `confident` is the share of photos whose answer is confident by the bundle's thresholds, and
    `confident_right` the share of those that are right; None without a threshold. `confident_close`
    is the share of those that are right or name a close relative; None if the photos name none.
    """

    bundle: str
    onnx_bytes: int
    bundle_bytes: int
    photos: int
    top1: float
    top5: float
    mean_confidence: float
    calibration_error: float
    confident: float | None
    confident_right: float | None
    inference_ms: Timing
    photo_ms: Timing
    machine: str
    onnxruntime: str
    confident_close: float | None = None


@dataclass(frozen=True)
class Answers:
    """The bundle's answers, in the order of the photos; arrays as in `models.metrics`.

    `close` marks best labels that are right or name a close relative; None if the photos name none.
    """

    labels: list[str]
    hits: np.ndarray
    close: np.ndarray | None
    confidence: np.ndarray
    confident: np.ndarray
    inference_ms: np.ndarray
    photo_ms: np.ndarray


def classify(bundle: Bundle, photos: Sequence[Photo], progress: Progress | None = None) -> Answers:
    """Classify each photo. Times are of inference, and of decoding and inference together."""
    classifier = Classifier(bundle, max_pixels=MAX_PIXELS, labels_per_image=PLACES)
    count = len(photos)
    places = min(PLACES, len(bundle.labels))
    hits, confident = np.zeros((count, places), np.bool_), np.zeros(count, np.bool_)
    confidence, inference, whole = np.empty(count), np.empty(count), np.empty(count)
    labels = []
    for _ in range(WARM_UP):
        classifier.classify(photos[0].file.read_bytes())
    bar = progress.add_task("classifying", total=count) if progress else None
    for row, photo in enumerate(photos):
        data = photo.file.read_bytes()
        began = time.thread_time()
        tensor = classifier.tensor(data)
        decoded = time.thread_time()
        (found,) = classifier.infer([tensor])
        ended = time.thread_time()
        inference[row], whole[row] = 1000 * (ended - decoded), 1000 * (ended - began)
        hits[row] = [each.label in photo.labels for each in found.annotations]
        confidence[row] = found.annotations[0].confidence
        confident[row] = bool(found.confident)
        labels.append(found.annotations[0].label)
        if progress and bar is not None:
            progress.advance(bar)
    close = None
    if any(photo.relatives for photo in photos):
        pairs = zip(labels, photos, strict=True)
        close = np.array([label in photo.labels | photo.relatives for label, photo in pairs])
    return Answers(labels, hits, close, confidence, confident, inference, whole)


def evaluation(bundle: Bundle, answers: Answers) -> Evaluation:
    """The figures of one run."""
    summed = (bundle.folder / name for name in SUMMED_FILES)
    right, confident = answers.hits[:, 0], answers.confident
    without_threshold = bundle.manifest.threshold is None
    return Evaluation(
        bundle=bundle.identity,
        onnx_bytes=(bundle.folder / MODEL_FILE).stat().st_size,
        bundle_bytes=sum(file.stat().st_size for file in summed if file.exists()),
        photos=len(right),
        top1=round(top_k(answers.hits, 1), 2),
        top5=round(top_k(answers.hits, 5), 2),
        mean_confidence=round(100 * float(answers.confidence.mean()), 2),
        calibration_error=round(calibration_error(answers.confidence, right), 2),
        confident=None if without_threshold else round(100 * float(confident.mean()), 2),
        confident_right=_share(right[confident]),
        confident_close=None if answers.close is None else _share(answers.close[confident]),
        inference_ms=_rounded(timing(answers.inference_ms)),
        photo_ms=_rounded(timing(answers.photo_ms)),
        machine=_machine(),
        onnxruntime=ort.__version__,
    )


def show(result: Evaluation, console: Console) -> None:
    """Print the figures as a table."""
    table = Table(title=result.bundle, show_header=False)
    for name, value in (
        ("photos", f"{result.photos:,}"),
        ("top-1", f"{result.top1:.2f} %"),
        ("top-5", f"{result.top5:.2f} %"),
        ("mean confidence", f"{result.mean_confidence:.2f} %"),
        ("expected calibration error", f"{result.calibration_error:.2f} points"),
        ("confident", _percent(result.confident)),
        ("right where confident", _percent(result.confident_right)),
        ("right or a close relative", _percent(result.confident_close)),
        ("inference, one thread", _times(result.inference_ms)),
        ("with decoding and resizing", _times(result.photo_ms)),
        ("model.onnx", f"{result.onnx_bytes / 1e6:.2f} MB"),
        ("bundle", f"{result.bundle_bytes / 1e6:.2f} MB"),
        ("machine", result.machine),
        ("ONNX Runtime", result.onnxruntime),
    ):
        table.add_row(name, value)
    console.print(table)


def _machine() -> str:
    """The processor's name if the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _share(hits: np.ndarray) -> float | None:
    """In percent; None without photos."""
    return round(100 * float(hits.mean()), 2) if hits.size else None


def _rounded(times: Timing) -> Timing:
    return Timing(round(times.median, 2), round(times.p95, 2))


def _times(times: Timing) -> str:
    return f"median {times.median:.2f} ms, p95 {times.p95:.2f} ms"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("models/default"))
    parser.add_argument("--photos", type=Path, required=True, help="a folder with photos.tsv")
    parser.add_argument("--name", default="photos", help="what the photos are, for --json")
    parser.add_argument("--json", type=Path, help="store the figures in this file, under the name")
    parser.add_argument("--answers", action="store_true", help="also print each photo's answer")
    args = parser.parse_args()
    console = Console()
    try:
        bundle = read_bundle(args.bundle)
        verify_bundle(bundle)
        photos = read_photos(args.photos)
        check_labels(photos, bundle.labels)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
            answers = classify(bundle, photos, progress)
    except (GlimpseError, OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    if args.answers:
        for photo, label, share in zip(photos, answers.labels, answers.confidence, strict=True):
            print(f"{photo.file.name}\t{label}\t{share:.3f}\t{label in photo.labels}")
    result = evaluation(bundle, answers)
    show(result, console)
    if args.json:
        figures = json.loads(args.json.read_bytes()) if args.json.exists() else {}
        write_json(args.json, {**figures, args.name: asdict(result)})


if __name__ == "__main__":
    main()
