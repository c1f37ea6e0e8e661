"""Figures of a classifier, as plain functions of arrays.

`hits` is (N, K): whether the label at each of the K first places of a photo is right.
`confidence` is (N,): the probability of the label at first place.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hits = NDArray[np.bool_]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Timing:
    """Milliseconds for one photo."""

    median: float
    p95: float


def top_k(hits: Hits, k: int) -> float:
    """Percent of photos with a right label among the first `k`."""
    return float(100 * hits[:, :k].any(axis=1).mean())


def calibration_error(confidence: Numbers, right: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error in percentage points (Guo et al. 2017, arxiv.org/abs/1706.04599).

    The mean distance between confidence and the share of right answers, over bins of equal width.
    """
    places = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    error = 0.0
    for place in np.unique(places):
        inside = places == place
        error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return float(100 * error)


def precision_threshold(
    confidence: Numbers, right: NDArray[np.bool_], precision: float
) -> float | None:
    """The least confidence from which at least the share `precision` of the answers is right.

    That holds for all photos with at least this confidence together. None if no threshold reaches
    it. Ties count together, since a threshold cannot separate them.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, correct = confidence[order], right[order]
    share = np.cumsum(correct) / np.arange(1, len(correct) + 1)
    ends = np.append(ranked[1:] != ranked[:-1], True)  # the last of each group of ties
    reached = np.flatnonzero(ends & (share >= precision))
    return None if not reached.size else float(ranked[reached[-1]])


def timing(milliseconds: Numbers) -> Timing:
    return Timing(float(np.median(milliseconds)), float(np.percentile(milliseconds, 95)))
