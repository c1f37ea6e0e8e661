"""Measure a bundle on labelled pictures, exactly as the worker classifies them.

    python -m models.evaluate --bundle models/default --data tiny-imagenet-200 --json FILE

Reads the JPEG files of the validation split one after another through the worker's own
preprocessing and ONNX Runtime on one thread. Needs no PyTorch.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from core.bundles.bundle import (
    LABELS_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    Bundle,
    read_bundle,
    verify_bundle,
)
from core.errors import GlimpseError
from models import tiny_imagenet
from models.bundle_writer import write_json
from models.metrics import (
    ClassScore,
    Confusion,
    Timing,
    calibration_error,
    class_scores,
    confusions,
    timing,
    top_k,
)
from worker.inference.preprocessing import Preprocessor

MAX_PIXELS = 50_000_000
GUESSES = 5
WARM_UP = 10


@dataclass(frozen=True)
class Evaluation:
    """Everything that `models.evaluate` measures. Shares are in percent, times in milliseconds."""

    bundle: str
    onnx_bytes: int
    bundle_bytes: int
    pictures: int
    top1: float
    top5: float
    mean_confidence: float
    calibration_error: float
    inference_ms: Timing
    picture_ms: Timing
    machine: str
    onnxruntime: str
    classes: list[ClassScore]
    confusions: list[Confusion]


@dataclass(frozen=True)
class Guesses:
    """What the network said of each picture, and how long it took."""

    ranked: np.ndarray
    confidence: np.ndarray
    inference_ms: np.ndarray
    picture_ms: np.ndarray


def guess(bundle: Bundle, files: Sequence[Path], progress: Progress | None = None) -> Guesses:
    """Classify each file. Times are of inference alone, and of decoding and inference together."""
    preprocessor = Preprocessor(bundle.manifest, MAX_PIXELS)
    session = _session(bundle)
    feed, outputs = bundle.manifest.input.name, [bundle.manifest.outputs.scores]
    ranked = np.empty((len(files), min(GUESSES, len(bundle.labels))), dtype=np.int64)
    confidence = np.empty(len(files))
    inference, whole = np.empty(len(files)), np.empty(len(files))
    for _ in range(WARM_UP):
        session.run(outputs, {feed: preprocessor.tensor(files[0].read_bytes())})
    bar = progress.add_task("classifying", total=len(files)) if progress else None
    for place, file in enumerate(files):
        data = file.read_bytes()
        began = time.perf_counter()
        tensor = preprocessor.tensor(data)
        ready = time.perf_counter()
        scores = np.asarray(session.run(outputs, {feed: tensor})[0], np.float64).ravel()
        done = time.perf_counter()
        inference[place], whole[place] = 1000 * (done - ready), 1000 * (done - began)
        ranked[place] = np.argsort(-scores, kind="stable")[: ranked.shape[1]]
        if bundle.manifest.outputs.kind == "logits":
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        confidence[place] = scores.max()
        if progress and bar is not None:
            progress.advance(bar)
    return Guesses(ranked, confidence, inference, whole)


def evaluation(bundle: Bundle, guesses: Guesses, truth: np.ndarray) -> Evaluation:
    """The figures of one run over pictures whose classes are `truth`."""
    summed = (bundle.folder / name for name in (MODEL_FILE, MANIFEST_FILE, LABELS_FILE))
    return Evaluation(
        bundle=bundle.identity,
        onnx_bytes=(bundle.folder / MODEL_FILE).stat().st_size,
        bundle_bytes=sum(file.stat().st_size for file in summed),
        pictures=len(truth),
        top1=round(top_k(guesses.ranked, truth, 1), 2),
        top5=round(top_k(guesses.ranked, truth, 5), 2),
        mean_confidence=round(100 * float(guesses.confidence.mean()), 2),
        calibration_error=round(
            calibration_error(guesses.confidence, guesses.ranked[:, 0] == truth), 2
        ),
        inference_ms=_rounded(timing(guesses.inference_ms)),
        picture_ms=_rounded(timing(guesses.picture_ms)),
        machine=_machine(),
        onnxruntime=ort.__version__,
        classes=class_scores(guesses.ranked, truth, bundle.labels),
        confusions=confusions(guesses.ranked, truth, bundle.labels, 20),
    )


def read_evaluation(content: bytes) -> Evaluation:
    """The JSON of `--json`, checked."""
    return TypeAdapter(Evaluation).validate_json(content)


def labelled_files(
    bundle: Bundle, data: Path, limit: int | None
) -> tuple[list[Path], np.ndarray[Any, Any]]:
    """Validation pictures and the bundle's class index of each. SystemExit where classes differ.

    A limit takes pictures evenly over the split, which the archive does not keep in class order.
    """
    if tiny_imagenet.class_labels(data) != list(bundle.labels):
        raise SystemExit(f"{bundle.identity} does not have the classes of {data}")
    files, truth = tiny_imagenet._listing(data, "val")
    chosen = np.arange(len(files))
    if limit is not None and limit < len(files):
        chosen = np.linspace(0, len(files) - 1, limit).astype(np.int64)
    return [files[i] for i in chosen], np.array(truth, dtype=np.int64)[chosen]


def show(result: Evaluation, console: Console) -> None:
    """Print the figures as tables."""
    summary = Table(title=result.bundle, show_header=False)
    for name, value in (
        ("pictures", f"{result.pictures:,}"),
        ("top-1", f"{result.top1:.2f} %"),
        ("top-5", f"{result.top5:.2f} %"),
        ("mean confidence", f"{result.mean_confidence:.2f} %"),
        ("expected calibration error", f"{result.calibration_error:.2f} points"),
        ("inference alone, one thread", _times(result.inference_ms)),
        ("with decoding and resizing", _times(result.picture_ms)),
        ("model.onnx", f"{result.onnx_bytes / 1e6:.2f} MB"),
        ("bundle", f"{result.bundle_bytes / 1e6:.2f} MB"),
        ("machine", result.machine),
        ("ONNX Runtime", result.onnxruntime),
    ):
        summary.add_row(name, value)
    console.print(summary)
    for title, scores in (
        ("Weakest classes", result.classes[:10]),
        ("Strongest classes", result.classes[:-11:-1]),
    ):
        table = Table("class", "pictures", "top-1 %", "top-5 %", title=title)
        for score in scores:
            row = (score.label, str(score.pictures), f"{score.top1:.0f}", f"{score.top5:.0f}")
            table.add_row(*row)
        console.print(table)
    table = Table("class", "taken for", "pictures", title="Most frequent confusions")
    for pair in result.confusions[:10]:
        table.add_row(pair.label, pair.guess, f"{pair.count} of {pair.pictures}")
    console.print(table)


def _session(bundle: Bundle) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(
        str(bundle.folder / MODEL_FILE), options, providers=["CPUExecutionProvider"]
    )


def _machine() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _rounded(times: Timing) -> Timing:
    return Timing(round(times.median, 2), round(times.p95, 2))


def _times(times: Timing) -> str:
    return f"median {times.median:.2f} ms, p95 {times.p95:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("models/default"))
    parser.add_argument("--data", type=Path, required=True, help="the unpacked tiny-imagenet-200")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--limit", type=int, help="classify only this many pictures")
    args = parser.parse_args()
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    try:
        bundle = read_bundle(args.bundle)
        verify_bundle(bundle)
        files, truth = labelled_files(bundle, args.data, args.limit)
        console = Console()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
            guesses = guess(bundle, files, progress)
    except (GlimpseError, OSError) as error:
        raise SystemExit(str(error)) from error
    result = evaluation(bundle, guesses, truth)
    show(result, console)
    if args.json:
        write_json(args.json, asdict(result))


if __name__ == "__main__":
    main()
