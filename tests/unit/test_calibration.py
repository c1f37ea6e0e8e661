"""The temperature that makes confidences match how often the labels are right."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.calibration import (
    LEAST,
    MOST,
    negative_log_likelihood,
    probabilities,
    temperature,
)

LABELS = 5


def drawn(degrees: float, count: int = 4000) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Logits, and right labels drawn with the probabilities softmax(logits / degrees)."""
    draw = np.random.default_rng(7)
    logits = draw.normal(0, 3, (count, LABELS)).astype(np.float32)
    shares = probabilities(logits, degrees)
    truth = (shares.cumsum(axis=1) > draw.random((count, 1))).argmax(axis=1)
    return logits, np.eye(LABELS, dtype=np.bool_)[truth]


@pytest.mark.parametrize("degrees", [0.5, 1.0, 2.0])
def test_temperature_of_scaled_logits_is_found(degrees: float) -> None:
    assert temperature(*drawn(degrees)) == pytest.approx(degrees, rel=0.1)


def test_every_right_label_of_a_photo_counts() -> None:
    logits = np.array([[3.0, 3.0, 0.0]], np.float32)
    one, both = np.array([[1, 0, 0]], np.bool_), np.array([[1, 1, 0]], np.bool_)
    share = probabilities(logits, 1.0)[0, 0]
    assert negative_log_likelihood(logits, one, 1.0) == pytest.approx(-np.log(share))
    assert negative_log_likelihood(logits, both, 1.0) == pytest.approx(-np.log(2 * share))


def test_large_logits_do_not_overflow() -> None:
    logits, right = drawn(1.0, 200)
    assert np.isfinite(probabilities(1e4 * logits, 1.0)).all()
    assert temperature((1e4 * logits).astype(np.float32), right) == MOST


@pytest.mark.parametrize(("right", "bound"), [(True, LEAST), (False, MOST)])
def test_temperature_stays_within_its_bounds(right: bool, bound: float) -> None:
    logits = np.array([[4.0, 0.0, 0.0]] * 10, np.float32)
    truth = np.zeros((10, 3), np.bool_)
    truth[:, 0 if right else 1] = True
    assert temperature(logits, truth) == bound
