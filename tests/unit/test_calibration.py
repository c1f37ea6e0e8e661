"""The temperature is the one that the pictures were drawn with."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.calibration import LEAST, MOST, temperature


def drawn(logits: NDArray[np.float32], degrees: float, seed: int = 0) -> NDArray[np.int64]:
    """A class for each row, with the probabilities of softmax(logits / degrees)."""
    noise = np.random.default_rng(seed).gumbel(size=logits.shape)
    classes: NDArray[np.int64] = np.argmax(logits / degrees + noise, axis=1)
    return classes


@pytest.mark.parametrize("degrees", [0.5, 0.8, 1.0, 1.7, 3.0])
def test_temperature_of_scaled_logits_is_found(degrees: float) -> None:
    logits = 3 * np.random.default_rng(7).standard_normal((20_000, 10)).astype(np.float32)
    assert temperature(logits, drawn(logits, degrees)) == pytest.approx(degrees, rel=0.03)


def test_large_logits_do_not_overflow() -> None:
    logits = 3 * np.random.default_rng(7).standard_normal((20_000, 10)).astype(np.float32)
    truth = drawn(logits, 1.0)
    shifted = logits + np.linspace(-1e4, 1e4, len(logits), dtype=np.float32)[:, None]
    assert temperature(shifted, truth) == pytest.approx(temperature(logits, truth), rel=1e-3)


@pytest.mark.parametrize(("right", "bound"), [(True, LEAST), (False, MOST)])
def test_temperature_stays_within_its_bounds(right: bool, bound: float) -> None:
    logits = np.tile(np.array([5.0, 0.0], np.float32), (100, 1))
    truth = np.zeros(100, np.int64) if right else np.ones(100, np.int64)
    assert temperature(logits, truth) == pytest.approx(bound)
