"""Transitions: the changes that an object in a store can undergo.

The domain decides, stores apply: a transition is a pure step from one state to the next, and
`change` of a store runs it in a transaction (`core.ports`).
"""

from __future__ import annotations  # those of nested functions cost time in each call

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Concatenate, Generic, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Transition(Generic[T]):
    """A step from one state to the next.

    `step` takes the state and the time. It returns the next state, or None if it refuses. It is
    pure: a store may call it more than once. Where `durable` is set, the new state is on disk
    (fsynced) before the store returns; otherwise a power loss may undo it. `name` is for logs and
    tests.
    """

    name: str
    step: Callable[[T, datetime], T | None]
    durable: bool

    def __call__(self, state: T, now: datetime) -> T | None:
        return self.step(state, now)


def transition(
    *, durable: bool
) -> Callable[[Callable[Concatenate[T, datetime, P], T | None]], Callable[P, Transition[T]]]:
    """Turn a function of a state, the time and further arguments into a maker of transitions.

    @transition(durable=False)
    def claim(record: Record, now: datetime, lease: timedelta) -> Record | None: ...

    await records.change(key, claim(timedelta(seconds=30)))
    """

    def decorate(
        function: Callable[Concatenate[T, datetime, P], T | None],
    ) -> Callable[P, Transition[T]]:
        @wraps(function)
        def bind(*args: P.args, **kwargs: P.kwargs) -> Transition[T]:
            def step(state: T, now: datetime) -> T | None:
                return function(state, now, *args, **kwargs)

            return Transition(function.__name__, step, durable)

        return bind

    return decorate
