"""Measures a model on images that it was not fitted to, and says what would make it better."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.domain.training_report import LabelReport, Mistake, TrainingReport
from worker.training.calibration import Probabilities, calibration_error
from worker.training.logistic import Classes

MAX_MISTAKES = 20
MAX_CONFUSIONS = 5  # pairs of labels that the advice names
FEW_IMAGES = 20  # below this, a label's figures say little
CONFUSED_SHARE, CONFUSED_IMAGES = 0.1, 3  # a pair of labels is confused from these figures on
_Z = 1.959964  # the central 95 % of the normal distribution are within this
# Cross-validation classifies images by models that share most of their training images, so its
# answers are not independent, and their accuracy varies more than a share of as many draws (Bengio
# and Grandvalet, 2004). The variance was up to 1.5 times as large on photos of clothing.
DEPENDENCE = 1.5


def measure(
    labels: Sequence[str],
    hashes: Sequence[str],
    classes: Classes,
    probabilities: Probabilities,
    *,
    thresholds: Sequence[float],
    folds: int,
) -> TrainingReport:
    """The report on `probabilities`, which have a row for each image and a column for each label.

    `hashes` and `classes` are the images' own, in the same order.
    """
    predicted = probabilities.argmax(axis=1)
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (classes, predicted), 1)
    right = int(np.trace(confusion))
    rows = tuple(
        _label_report(label, confusion, index, thresholds[index])
        for index, label in enumerate(labels)
    )
    return TrainingReport(
        images=len(classes),
        folds=folds,
        accuracy=right / len(classes),
        accuracy_interval=wilson_interval(right / DEPENDENCE, len(classes) / DEPENDENCE),
        macro_f1=sum(row.f1 for row in rows) / len(rows),
        calibration_error=calibration_error(probabilities, classes),
        labels=rows,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        mistakes=_mistakes(labels, hashes, classes, probabilities),
        advice=_advice(rows, confusion),
    )


def wilson_interval(right: float, total: float) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which holds for few images too."""
    share, square = right / total, _Z * _Z
    middle = share + square / (2 * total)
    spread = _Z * (share * (1 - share) / total + square / (4 * total * total)) ** 0.5
    scale = 1 + square / total
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _label_report(
    label: str, confusion: NDArray[np.int64], index: int, threshold: float
) -> LabelReport:
    right, support = int(confusion[index, index]), int(confusion[index].sum())
    answers = int(confusion[:, index].sum())
    precision = right / answers if answers else 0.0
    recall = right / support
    f1 = 2 * right / (answers + support)
    return LabelReport(label, support, precision, recall, f1, threshold)


def _mistakes(
    labels: Sequence[str], hashes: Sequence[str], classes: Classes, probabilities: Probabilities
) -> tuple[Mistake, ...]:
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != classes)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MAX_MISTAKES]
    return tuple(
        Mistake(hashes[row], labels[classes[row]], labels[predicted[row]], float(confidence[row]))
        for row in worst
    )


def _advice(rows: Sequence[LabelReport], confusion: NDArray[np.int64]) -> tuple[str, ...]:
    few = [
        f"The label {row.label!r} has {row.support} images. Its figures are rough below "
        f"{FEW_IMAGES}: add images of it."
        for row in rows
        if row.support < FEW_IMAGES
    ]
    pairs = []
    for first in range(len(rows)):
        for second in range(first + 1, len(rows)):
            confused = int(confusion[first, second] + confusion[second, first])
            images = rows[first].support + rows[second].support
            if confused >= CONFUSED_IMAGES and confused / images >= CONFUSED_SHARE:
                text = (
                    f"The labels {rows[first].label!r} and {rows[second].label!r} are confused in "
                    f"{confused} of {images} images. Check that these images have the right "
                    "label, add images that show the difference, or join the labels."
                )
                pairs.append((confused / images, text))
    pairs.sort(key=lambda pair: -pair[0])
    return (*few, *(text for _, text in pairs[:MAX_CONFUSIONS]))
