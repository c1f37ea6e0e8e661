"""Turns logits into probabilities that can be trusted, and chooses thresholds for them."""

import numpy as np
from numpy.typing import NDArray

from worker.training.logistic import Classes, Matrix

Probabilities = NDArray[np.float64]

COLDEST, HOTTEST = 0.05, 20.0  # temperatures
PRECISION = 0.9  # share of the confident answers that should be right
ENOUGH = 20  # answers with a label, from which on it has its own threshold
CERTAIN = 0.99  # the threshold if no lower one reaches the precision
BINS = 10


def softmax(logits: Matrix, temperature: float) -> Probabilities:
    """A row of probabilities for each row of logits."""
    scores = logits.astype(np.float64) / temperature
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    return scores


def fit_temperature(logits: Matrix, classes: Classes) -> float:
    """The temperature with the least cross-entropy (Guo et al. 2017, arXiv:1706.04599).

    The loss is convex in the inverse temperature, so bisection of its derivative finds the minimum.
    """
    scores = logits.astype(np.float64)
    chosen = scores[np.arange(len(classes)), classes]
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(40):
        middle = (low * high) ** 0.5
        expected = (softmax(logits, 1 / middle) * scores).sum(axis=1)
        if (expected - chosen).mean() > 0:
            high = middle
        else:
            low = middle
    return float(1 / middle)


def fit_thresholds(probabilities: Probabilities, classes: Classes) -> tuple[float, ...]:
    """For each label the lowest confidence from which `PRECISION` of its answers are right.

    Labels with fewer than `ENOUGH` answers share the threshold of all answers together.
    """
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    right = predicted == classes
    shared = _threshold(confidence, right)
    return tuple(
        _threshold(confidence[answers], right[answers]) if answers.sum() >= ENOUGH else shared
        for answers in (predicted == label for label in range(probabilities.shape[1]))
    )


def calibration_error(probabilities: Probabilities, classes: Classes) -> float:
    """The expected calibration error over `BINS` bins of equal width (Naeini et al. 2015)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == classes
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = (
        abs(float(right[members].sum()) - float(confidence[members].sum()))
        for members in (bins == number for number in range(BINS))
    )
    return sum(gaps) / len(classes)


def _threshold(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """The lowest confidence from which `PRECISION` of the answers are right."""
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    precision = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    # Equal confidences pass together, so only the last of them is a candidate.
    last = np.append(ranked[1:] < ranked[:-1], True)
    passing = np.flatnonzero((precision >= PRECISION) & last)
    # Rounded down, so that the answer at the threshold passes it.
    return CERTAIN if not passing.size else float(np.floor(1e4 * ranked[passing[-1]]) / 1e4)
