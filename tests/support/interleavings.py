"""Runs concurrent tasks in every order of their calls to the ports of a backend.

Two calls in a row by different tasks to different ports have the same effect in both orders, so
only one of the two is run.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

from core.backends import Backend
from core.errors import Unavailable
from tests.support.faults import watched

Actor = Callable[[Backend], Awaitable[object]]

MAX_POLLS = 2  # a caller that waits for another one gets no further turns before the other one


class Death(Unavailable):
    """The process dies before a call. No code handles this error."""


@dataclass
class _Task:
    name: str
    task: asyncio.Task[object]
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    call: str = ""
    polls: int = 0


@dataclass
class Run:
    """One order: the calls in their order, and what each actor returned or raised."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    outcomes: dict[str, object] = field(default_factory=dict)
    choices: list[tuple[int, int]] = field(default_factory=list)  # which of how many

    def index(self, actor: str, call: str) -> int:
        return self.calls.index((actor, call))


async def run_in_order(
    backend: Backend,
    actors: dict[str, Actor],
    order: Sequence[int],
    poll: str,
    alone: str,
    dies: tuple[str, int] = ("", 0),
) -> Run:
    """Run the actors, one call at a time. `order` has the first choices; then the first may go on.

    `poll` is the call that a waiting actor repeats. No other actor's calls depend on those whose
    names begin with `alone`, so their order makes no difference. The actor `dies[0]` dies before
    its call with the number `dies[1]`, so that this call and all later ones fail.
    """
    run, tasks = Run(), dict[str, _Task]()
    could = set[str]()  # the actors that could have gone on instead of the last one

    def opened(name: str) -> Backend:
        calls = 0

        async def happens(call: str, after: bool) -> None:
            nonlocal calls
            if after:
                return
            calls += 1
            if dies[0] == name and calls >= dies[1]:
                raise Death("The process dies.")
            if call.startswith(alone):
                return
            each = tasks[name]
            each.polls = each.polls + 1 if call == poll else 0
            each.call = call
            each.waiting.set()
            await each.turn.wait()
            each.turn.clear()

        return watched(backend, happens)

    async def act(name: str, actor: Actor) -> object:
        try:
            return await actor(opened(name))
        except Exception as error:  # noqa: BLE001 - the test checks it
            return error

    for name, actor in actors.items():
        tasks[name] = _Task(name, asyncio.create_task(act(name, actor)))
    while True:
        for each in tasks.values():
            stopped = asyncio.create_task(each.waiting.wait())
            await asyncio.wait((stopped, each.task), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
        live = [each for each in tasks.values() if not each.task.done()]
        if not live:
            break
        able = [each for each in live if each.polls < MAX_POLLS] or live
        waited, could = could, {each.name for each in able}
        if run.calls:
            able = [each for each in able if not _is_repetition(each, run, waited)] or able
        number = len(run.choices)
        choice = min(order[number], len(able) - 1) if number < len(order) else 0
        run.choices.append((choice, len(able)))
        chosen = able[choice]
        run.calls.append((chosen.name, chosen.call))
        chosen.waiting.clear()
        chosen.turn.set()
    run.outcomes = {name: each.task.result() for name, each in tasks.items()}
    return run


def _is_repetition(next_one: _Task, run: Run, waited: Collection[str]) -> bool:
    """Whether another run makes this call before the last one of `run`, with the same effect."""
    actor, call = run.calls[-1]
    port, last_port = (each.partition(".")[0] for each in (next_one.call, call))
    return next_one.name in waited and next_one.name > actor and port != last_port


async def every_order(
    new_run: Callable[[Sequence[int]], Awaitable[Run]],
) -> AsyncIterator[Run]:
    """Each order once. `new_run` begins with a fresh state and runs the actors in this order."""
    order: list[int] | None = []
    while order is not None:
        run = await new_run(order)
        yield run
        order = next_order(run.choices)


async def some_orders(
    new_run: Callable[[Sequence[int]], Awaitable[Run]], number: int
) -> AsyncIterator[Run]:
    """Random orders, for a store that is too slow for all of them."""
    draw = random.Random(number)
    for _ in range(number):
        yield await new_run([draw.randint(0, 1) for _ in range(64)])


def next_order(choices: Sequence[tuple[int, int]]) -> list[int] | None:
    """The next order in a depth-first search, or None after the last one."""
    for number in reversed(range(len(choices))):
        choice, of = choices[number]
        if choice + 1 < of:
            return [taken for taken, _ in choices[:number]] + [choice + 1]
    return None
