"""Multinomial logistic regression against SciPy's solver."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize as scipy_minimize  # type: ignore[import-untyped]

from worker.training.logistic import Classes, Matrix, fit_logistic, minimize


def _examples(rows: int, classes: int, features: int, seed: int) -> tuple[Matrix, Classes]:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, features))
    labels = np.arange(rows) % classes
    found = centres[labels] + generator.normal(size=(rows, features))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found.astype(np.float32), labels


def _reference(features: Matrix, labels: Classes, classes: int, penalty: float) -> float:
    """The least loss that SciPy finds, in double precision."""
    inputs = np.hstack([features.astype(np.float64), np.ones((len(features), 1))])

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.reshape(inputs.shape[1], classes)
        return _loss_and_gradient(weights, inputs, labels, penalty)

    start = np.zeros(inputs.shape[1] * classes)
    found = scipy_minimize(loss, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-8})
    return float(found.fun)


def _loss_and_gradient(
    weights: NDArray[np.float64], inputs: NDArray[np.float64], labels: Classes, penalty: float
) -> tuple[float, NDArray[np.float64]]:
    logits = inputs @ weights
    logits -= logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(logits).sum(axis=1))
    rows = np.arange(len(labels))
    value = (log_sums - logits[rows, labels]).mean() + penalty / 2 * (weights[:-1] ** 2).sum()
    residual = np.exp(logits - log_sums[:, None])
    residual[rows, labels] -= 1
    gradient = inputs.T @ residual / len(labels)
    gradient[:-1] += penalty * weights[:-1]
    return float(value), gradient.ravel()


@pytest.mark.parametrize(("rows", "classes"), [(40, 2), (300, 5), (1500, 3)])
@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_loss_is_as_low_as_that_of_scipy(rows: int, classes: int, penalty: float) -> None:
    features, labels = _examples(rows, classes, 32, seed=rows)
    model = fit_logistic([(features, labels)], classes, penalty)
    inputs = np.hstack([features.astype(np.float64), np.ones((rows, 1))])
    parameters = np.vstack([model.weights, model.bias]).astype(np.float64)
    found, _ = _loss_and_gradient(parameters, inputs, labels, penalty)
    assert found - _reference(features, labels, classes, penalty) < 1e-4


def test_parts_are_one_training_set() -> None:
    features, labels = _examples(120, 3, 16, seed=1)
    whole = fit_logistic([(features, labels)], 3, 1e-3)
    parts = [(features[:50], labels[:50]), (features[50:], labels[50:])]
    split = fit_logistic(parts, 3, 1e-3)
    np.testing.assert_allclose(split.logits(features), whole.logits(features), atol=1e-2)


def test_fit_is_deterministic() -> None:
    features, labels = _examples(120, 3, 16, seed=2)
    first, second = (fit_logistic([(features, labels)], 3, 1e-3) for _ in range(2))
    np.testing.assert_array_equal(first.weights, second.weights)


def test_bias_learns_the_shares_of_the_labels() -> None:
    """If no feature is informative, the probabilities are the labels' shares."""
    features = np.zeros((100, 4), np.float32)
    labels = np.repeat(np.array([0, 1]), [80, 20])
    logits = fit_logistic([(features, labels)], 2, 1.0).logits(features[:1])[0]
    assert np.exp(logits[0] - logits[1]) == pytest.approx(4, rel=0.02)


def test_minimize_solves_an_ill_conditioned_quadratic() -> None:
    scales = np.array([1e-1, 1.0, 1e3])
    target = np.array([3.0, -2.0, 1.0])

    def quadratic(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        gap = point - target
        return float((scales * gap**2).sum() / 2), scales * gap

    np.testing.assert_allclose(minimize(quadratic, np.zeros(3)), target, atol=2e-3)
