"""How sure a classifier should say it is: one temperature for all its logits.

A temperature changes no ranking, only the confidences: Guo et al. 2017,
https://arxiv.org/abs/1706.04599.
"""

import numpy as np
from numpy.typing import NDArray

LEAST, MOST = 0.25, 4.0  # beyond these something else is wrong than the confidences


def temperature(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """The T in `LEAST`..`MOST` under which softmax(logits / T) makes `truth` most likely.

    `logits` is (N, classes), of pictures that the network was not trained on; `truth` is (N,).
    """
    scores = logits.astype(np.float64)
    scores -= scores[np.arange(len(truth)), truth][:, None]
    low, high = 1 / MOST, 1 / LEAST
    # The negative log-likelihood is convex in 1/T: where its slope changes sign, it is least.
    for _ in range(50):
        middle = (low + high) / 2
        if _slope(scores, middle) < 0:
            low = middle
        else:
            high = middle
    return 2 / (low + high)


def _slope(scores: NDArray[np.float64], inverse: float) -> float:
    """Of the mean negative log-likelihood, by 1/T; `scores` are less each true class's own."""
    weights = np.exp(inverse * (scores - scores.max(axis=1, keepdims=True)))
    return float(((weights * scores).sum(axis=1) / weights.sum(axis=1)).mean())
