"""Times of the steps of a classification. The worker records them as spans of the image's trace."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Step(NamedTuple):
    """A step that has ended. Times are in Unix nanoseconds; `images` is the size of its batch."""

    name: str
    began: int
    ended: int
    images: int = 1


_steps: ContextVar[list[Step] | None] = ContextVar("steps", default=None)


def new_steps() -> list[Step]:
    """The list that `timed` appends to from now on."""
    steps: list[Step] = []
    _steps.set(steps)
    return steps


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Append a step to the list of `new_steps`, if there is one, also after an exception."""
    began = time.time_ns()
    try:
        yield
    finally:
        steps = _steps.get()
        if steps is not None:
            steps.append(Step(name, began, time.time_ns()))
