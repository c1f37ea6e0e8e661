"""Multinomial logistic regression, fitted by L-BFGS.

The solver is our own, because SciPy's adds 143 MB to the worker's image and 52 MB to its memory
(decision 32). `tests/unit/test_training_logistic.py` compares it with SciPy's.
L-BFGS: Nocedal and Wright, Numerical Optimization, 2nd edition, algorithms 7.4 and 7.5.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Vector = NDArray[np.float64]
Classes = NDArray[np.int64]

HISTORY = 10  # pairs of steps and changes of the gradient that L-BFGS keeps
MAX_ITERATIONS = 200
TOLERANCE = 1e-4  # the largest component of the gradient of the mean loss at the end
SUFFICIENT = 1e-4  # share of the predicted decrease that a step must reach (Armijo's condition)
MAX_HALVINGS = 30
ROWS_AT_ONCE = 1024  # bounds the memory of the intermediate results


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear model: `weights` has a row for each feature and a column for each class."""

    weights: Matrix
    bias: Matrix

    def logits(self, features: Matrix) -> Matrix:
        """A row for each row of `features`, and a column for each class."""
        return features @ self.weights + self.bias


def fit_logistic(parts: Sequence[tuple[Matrix, Classes]], classes: int, penalty: float) -> Linear:
    """Fit the model that minimises the mean cross-entropy plus `penalty`/2 times |weights|².

    `parts` are rows of features with the class of each row, from 0 to `classes` - 1. Several parts
    are one training set, so that a fold can be left out without a copy of the rest. The bias has no
    penalty. Deterministic for the same input on the same machine.
    """
    features = parts[0][0].shape[1]
    rows = sum(len(labels) for _, labels in parts)

    def loss(flat: Vector) -> tuple[float, Vector]:
        parameters = flat.reshape(features + 1, classes)
        weights, bias = parameters[:-1].astype(np.float32), parameters[-1].astype(np.float32)
        total, gradient = 0.0, np.zeros_like(parameters)
        for block, labels in _blocks(parts):
            part, residual = _cross_entropy(block @ weights + bias, labels)
            total += part
            gradient[:-1] += block.T @ residual
            gradient[-1] += residual.sum(axis=0, dtype=np.float64)
        gradient /= rows
        gradient[:-1] += penalty * parameters[:-1]
        regular = 0.5 * penalty * float(np.square(parameters[:-1]).sum())
        return total / rows + regular, gradient.ravel()

    flat = minimize(loss, np.zeros((features + 1) * classes))
    parameters = flat.reshape(features + 1, classes).astype(np.float32)
    return Linear(parameters[:-1], parameters[-1])


def minimize(function: Callable[[Vector], tuple[float, Vector]], start: Vector) -> Vector:
    """The minimum of a smooth convex function, which returns its value and its gradient."""
    point, history = start, deque[tuple[Vector, Vector]](maxlen=HISTORY)
    value, gradient = function(point)
    for _ in range(MAX_ITERATIONS):
        if np.abs(gradient).max() <= TOLERANCE:
            break
        direction = -_times_inverse_hessian(gradient, history)
        slope = float(direction @ gradient)
        # Without history, the direction has the length of the gradient, which says nothing.
        step = 1.0 if history else 1.0 / float(np.linalg.norm(gradient))
        for _ in range(MAX_HALVINGS):
            after = point + step * direction
            next_value, next_gradient = function(after)
            if next_value <= value + SUFFICIENT * step * slope:
                break
            step /= 2
        else:
            break  # no step decreases the value: the precision of the numbers is exhausted
        moved, changed = after - point, next_gradient - gradient
        if float(moved @ changed) > 1e-12:  # else the pair would break the approximation
            history.append((moved, changed))
        point, value, gradient = after, next_value, next_gradient
    return point


def _times_inverse_hessian(gradient: Vector, history: deque[tuple[Vector, Vector]]) -> Vector:
    """The product of the gradient with the approximate inverse Hessian: the two-loop recursion."""
    product, factors = gradient.copy(), []
    for moved, changed in reversed(history):
        factor = float(moved @ product) / float(moved @ changed)
        factors.append(factor)
        product -= factor * changed
    if history:
        moved, changed = history[-1]
        product *= float(moved @ changed) / float(changed @ changed)
    for (moved, changed), factor in zip(history, reversed(factors), strict=True):
        product += moved * (factor - float(changed @ product) / float(moved @ changed))
    return product


def _blocks(parts: Sequence[tuple[Matrix, Classes]]) -> Sequence[tuple[Matrix, Classes]]:
    return [
        (features[begin : begin + ROWS_AT_ONCE], labels[begin : begin + ROWS_AT_ONCE])
        for features, labels in parts
        for begin in range(0, len(labels), ROWS_AT_ONCE)
    ]


def _cross_entropy(logits: Matrix, labels: Classes) -> tuple[float, Matrix]:
    """The summed loss, and its derivative by the logits, which replaces them in memory."""
    logits -= logits.max(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    chosen = logits[rows, labels].astype(np.float64)
    np.exp(logits, out=logits)
    sums = logits.sum(axis=1, keepdims=True)
    loss = float(np.log(sums[:, 0], dtype=np.float64).sum() - chosen.sum())
    logits /= sums
    logits[rows, labels] -= 1
    return loss, logits
