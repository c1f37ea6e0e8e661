"""Fits a head to labelled embeddings, and measures it by cross-validation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.domain.training_report import TrainingReport
from worker.inference.head import Head
from worker.training.calibration import fit_temperature, fit_thresholds, softmax
from worker.training.folds import assign_folds, count_folds
from worker.training.logistic import Classes, Linear, Matrix, fit_logistic
from worker.training.metrics import measure

# The inverse of the penalty's weight against the summed loss, as `C` of scikit-learn. On photos of
# ten kinds of clothing, 10 was best or within 0.3 points of it for 5, 20 and 100 photos a label.
STRENGTH = 10.0


@dataclass(slots=True)
class TrainingSet:
    """`embeddings` has one row an image, in any length; `fit_head` normalises and reorders it.

    `classes` has the index in `labels` of each image's label, and `hashes` each image's hash.
    """

    base: str
    labels: tuple[str, ...]
    hashes: Sequence[str]
    classes: Classes
    embeddings: Matrix


def fit_head(examples: TrainingSet) -> tuple[Head, TrainingReport]:
    """Fit a head to all examples, and report how folds of them classify what they left out.

    The result does not depend on the order of the examples. Raises ValueError if a label has
    fewer than two examples.
    """
    examples = _sorted(examples)
    labels, features, classes = examples.labels, examples.embeddings, examples.classes
    folds = count_folds(classes)
    # One fold after the other, so that leaving one out needs no copy of the rest.
    assigned = assign_folds(classes, folds)
    order = np.argsort(assigned, kind="stable")
    _reorder(features, order)
    classes, hashes = classes[order], [examples.hashes[row] for row in order]
    ends = np.cumsum(np.bincount(assigned, minlength=folds))
    logits = np.empty((len(classes), len(labels)), np.float32)
    for begin, end in zip((0, *ends[:-1]), ends, strict=True):
        rest = [(features[:begin], classes[:begin]), (features[end:], classes[end:])]
        logits[begin:end] = _fit(rest, len(labels)).logits(features[begin:end])
    temperature = round(fit_temperature(logits, classes), 4)
    probabilities = softmax(logits, temperature)
    thresholds = fit_thresholds(probabilities, classes)
    report = measure(labels, hashes, classes, probabilities, thresholds=thresholds, folds=folds)
    final = _fit([(features, classes)], len(labels))
    head = Head(examples.base, labels, final.weights, final.bias, temperature, thresholds)
    return head, report


def _fit(parts: Sequence[tuple[Matrix, Classes]], labels: int) -> Linear:
    rows = sum(len(classes) for _, classes in parts)
    return fit_logistic(parts, labels, 1 / (STRENGTH * rows))


def _sorted(examples: TrainingSet) -> TrainingSet:
    """The examples by hash, normalised, in the memory of the given ones."""
    order = np.argsort(np.array(examples.hashes))
    embeddings = examples.embeddings
    # `np.linalg.norm` would copy all embeddings.
    lengths = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings))[:, None]
    embeddings /= np.maximum(lengths, np.float32(1e-12))
    _reorder(embeddings, order)
    hashes = [examples.hashes[row] for row in order]
    return TrainingSet(examples.base, examples.labels, hashes, examples.classes[order], embeddings)


def _reorder(matrix: Matrix, order: Classes) -> None:
    """Reorder the rows in place, cycle by cycle: a copy would double the memory."""
    done = np.zeros(len(order), bool)
    for start in range(len(order)):
        if done[start]:
            continue
        held, row = matrix[start].copy(), start
        while (source := int(order[row])) != start:
            matrix[row] = matrix[source]
            done[row], row = True, source
        matrix[row], done[row] = held, True
