"""What a training measured, as it is stored and shown.

Everything is measured on images that the classifier in question was not fitted to: each image is
classified by the fold that left it out.
"""

from dataclasses import dataclass

from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class LabelReport:
    """`support` is the number of images with this label, `threshold` the confidence from which an
    answer with this label is confident."""

    label: str
    support: int
    precision: float
    recall: float
    f1: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image that was classified as `predicted` instead of `label`."""

    image_hash: str
    label: str
    predicted: str
    confidence: float


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """`accuracy_interval` is the 95 % interval of `accuracy`.

    `confusion` has a row for each true label and a column for each predicted one, in the order of
    `labels`. `calibration_error` is the mean distance between confidence and accuracy. `mistakes`
    are the most confident ones. `advice` says in words what would make the model better.
    """

    images: int
    folds: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float
    calibration_error: float
    labels: tuple[LabelReport, ...]
    confusion: tuple[tuple[int, ...], ...]
    mistakes: tuple[Mistake, ...]
    advice: tuple[str, ...]


_REPORT = TypeAdapter(TrainingReport)


def bytes_of_report(report: TrainingReport) -> bytes:
    """The report as JSON."""
    return _REPORT.dump_json(report)


def report_of_bytes(data: bytes) -> TrainingReport:
    """The inverse of `bytes_of_report`. Raises ValueError."""
    return _REPORT.validate_json(data)
