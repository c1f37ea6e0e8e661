"""Figures of a classifier from its ranked guesses, as plain functions of arrays.

`ranked` is (N, K): the K best class indices of each picture, best first. `truth` is (N,).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class ClassScore:
    """How often pictures of one class are named right, in percent of `pictures`."""

    label: str
    pictures: int
    top1: float
    top5: float


@dataclass(frozen=True)
class Confusion:
    """`count` of `pictures` pictures of `label` were taken for `guess`."""

    label: str
    guess: str
    count: int
    pictures: int


@dataclass(frozen=True)
class Timing:
    """Milliseconds a picture."""

    median: float
    p95: float


def top_k(ranked: Indices, truth: Indices, k: int) -> float:
    """Percent of pictures whose class is among the first `k` guesses."""
    return float(100 * (ranked[:, :k] == truth[:, None]).any(axis=1).mean())


def class_scores(ranked: Indices, truth: Indices, labels: tuple[str, ...]) -> list[ClassScore]:
    """Every class that occurs in `truth`, weakest (by top-1, then top-5) first."""
    scores = []
    for index, label in enumerate(labels):
        own = truth == index
        if not own.any():
            continue
        top1, top5 = (top_k(ranked[own], truth[own], k) for k in (1, 5))
        scores.append(ClassScore(label, int(own.sum()), top1, top5))
    return sorted(scores, key=lambda score: (score.top1, score.top5, score.label))


def confusions(
    ranked: Indices, truth: Indices, labels: tuple[str, ...], limit: int
) -> list[Confusion]:
    """The `limit` most frequent wrong first guesses."""
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, (truth, ranked[:, 0]), 1)
    totals = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:limit]
    pairs = ((int(place) // len(labels), int(place) % len(labels)) for place in order)
    return [
        Confusion(labels[own], labels[guess], int(counts[own, guess]), int(totals[own]))
        for own, guess in pairs
        if counts[own, guess]
    ]


def calibration_error(confidence: Numbers, right: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error in percent points (Guo et al. 2017, arxiv.org/abs/1706.04599).

    The mean distance between stated confidence and the share that is right, over equal bins.
    """
    places = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    error = 0.0
    for place in np.unique(places):
        inside = places == place
        error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return float(100 * error)


def timing(milliseconds: Numbers) -> Timing:
    return Timing(float(np.median(milliseconds)), float(np.percentile(milliseconds, 95)))
