"""Stratified folds: parts of the examples that have about the same share of each label."""

import numpy as np

from worker.training.logistic import Classes

MOST, FEWEST = 5, 3  # folds of a small and of a large training set
LARGE = 2000  # examples from which on the fewest folds are precise enough


def count_folds(classes: Classes) -> int:
    """How many folds to use: fewer for many examples, and no more than the rarest label has.

    Raises ValueError if a label has fewer than two examples.
    """
    rarest = int(np.bincount(classes).min())
    if rarest < 2:
        raise ValueError("a label has fewer than two examples")
    return min(FEWEST if len(classes) >= LARGE else MOST, rarest)


def assign_folds(classes: Classes, folds: int) -> Classes:
    """The fold of each example, from 0 to `folds` - 1.

    Deals the examples of each label in their order, and continues where the previous label ended,
    so that no fold gets all the remainders.
    """
    assigned = np.empty_like(classes)
    dealt = 0
    for label in range(int(classes.max()) + 1):
        members = np.flatnonzero(classes == label)
        assigned[members] = (dealt + np.arange(len(members))) % folds
        dealt += len(members)
    return assigned
