"""One temperature for all logits of a classifier, so that its confidences match its accuracy.

A temperature changes no ranking, only the confidences: Guo et al. 2017,
https://arxiv.org/abs/1706.04599.
"""

import numpy as np
from numpy.typing import NDArray

LEAST, MOST = 0.25, 4.0  # a temperature outside indicates another fault than the confidences
STEP = 0.01


def temperature(logits: NDArray[np.float32], right: NDArray[np.bool_]) -> float:
    """The temperature T that makes the right labels most likely under softmax(logits / T).

    `logits` is (N, labels), of photos that the network was not trained on. `right` has the same
    shape and marks the labels that are right for each photo; at least one. T is a multiple of
    `STEP` between `LEAST` and `MOST`.
    """
    candidates = np.arange(round(LEAST / STEP), round(MOST / STEP) + 1) * STEP
    losses = [negative_log_likelihood(logits, right, each) for each in candidates]
    return round(float(candidates[int(np.argmin(losses))]), 2)


def negative_log_likelihood(
    logits: NDArray[np.float32], right: NDArray[np.bool_], degrees: float
) -> float:
    """The mean of -log(probability of the right labels) at the temperature `degrees`."""
    scores = logits.astype(np.float64) / degrees
    scores -= scores.max(axis=1, keepdims=True)
    weights = np.exp(scores)
    likelihood = (weights * right).sum(axis=1) / weights.sum(axis=1)
    return float(-np.log(np.maximum(likelihood, np.finfo(np.float64).tiny)).mean())


def probabilities(logits: NDArray[np.float32], degrees: float) -> NDArray[np.float64]:
    """softmax(logits / degrees)."""
    weights = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64) / degrees)
    total: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return total
