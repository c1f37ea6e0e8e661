"""Faults of running processes and of their files, one at a time."""

import contextlib
import random
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from tests.chaos.emulators import ChaosEmulators
from tests.chaos.stepping_clock import set_offset
from tests.support.signals import standing_still
from tests.support.stack import Stack

LONGEST_PAUSE = 6.0  # seconds; more than the lease and the ack deadline of the experiment
LONGEST_OUTAGE = 2.0
LARGEST_STEP = 20.0  # a lease lasts longer by the lead of the clock that granted it


@dataclass(frozen=True)
class Fault:
    """`inflict` causes the fault, waits, and reverts it. The process may have ended by then."""

    name: str
    inflict: Callable[[], None]


def faults(
    stack: Stack,
    clock: Path,
    draw: random.Random,
    emulators: ChaosEmulators | None,
    messages_lost: Callable[[], None],
) -> list[Fault]:
    """The faults of this backend. Emulators have their own files and clock.

    Calls `messages_lost` after the messages of the queue were lost.
    """
    found = [
        Fault("kill -9 a classifier process", partial(_kill_classifier, stack, draw)),
        Fault("step the clock", partial(_step, clock, draw)),
    ]
    for name in stack.names:
        found.append(Fault(f"kill -9 {name}", partial(_kill, stack, name)))
        found.append(Fault(f"freeze {name}", partial(_freeze, stack, name, draw)))
        if emulators is None:
            found.append(Fault(f"disk full for {name}", partial(_fill, stack, name, draw)))
    if emulators is None:
        data = Path(stack.environment["DATA_DIR"])
        found.append(Fault("data folder read-only", partial(_forbid, data, draw)))
        found.append(Fault("no image folder", partial(_take_away, stack, data / "blobs", draw)))
    else:
        for name in ("datastore", "storage", "pubsub"):
            found.append(
                Fault(f"restart {name}", partial(_restart, stack, emulators, name, messages_lost))
            )
            found.append(Fault(f"freeze {name}", partial(_hang, emulators, name, draw)))
    return found


def _kill(stack: Stack, name: str) -> None:
    stack.kill(name)
    stack.start(name, timeout=120)


def _freeze(stack: Stack, name: str, draw: random.Random) -> None:
    with _gone_is_fine():
        process = psutil.Process(stack.processes[name].pid)
        process.suspend()
        try:
            # A worker stays frozen until another one may have taken over its work.
            least = 4.5 if name.startswith("worker") else 0.2
            time.sleep(draw.uniform(least, LONGEST_PAUSE))
        finally:
            process.resume()


def _kill_classifier(stack: Stack, draw: random.Random) -> None:
    with _gone_is_fine():
        children = psutil.Process(stack.processes["worker"].pid).children()
        if children:
            draw.choice(children).kill()


def _step(clock: Path, draw: random.Random) -> None:
    set_offset(clock, draw.uniform(-LARGEST_STEP, LARGEST_STEP))


def _fill(stack: Stack, name: str, draw: random.Random) -> None:
    """No file of the process can grow: writes fail as on a full disk (EFBIG for ENOSPC)."""
    with _gone_is_fine():
        process = psutil.Process(stack.processes[name].pid)
        _, most = process.rlimit(resource.RLIMIT_FSIZE)
        process.rlimit(resource.RLIMIT_FSIZE, (0, most))
        try:
            time.sleep(draw.uniform(0.2, LONGEST_OUTAGE))
        finally:
            process.rlimit(resource.RLIMIT_FSIZE, (most, most))


def _take_away(stack: Stack, folder: Path, draw: random.Random) -> None:
    """Files in the folder can be neither read nor written."""
    # Two steps, not one: a process that stores an image in between creates the folder again.
    aside = folder.with_name("aside")
    with standing_still(*_apis(stack)):
        folder.rename(aside)
        folder.write_bytes(b"")
    try:
        time.sleep(draw.uniform(0.2, LONGEST_OUTAGE))
    finally:
        with standing_still(*_apis(stack)):
            folder.unlink()
            aside.rename(folder)


def _apis(stack: Stack) -> list[psutil.Process]:
    found = [process for name, process in stack.processes.items() if name.startswith("api")]
    return [psutil.Process(process.pid) for process in found]


def _forbid(data: Path, draw: random.Random) -> None:
    """Files in the folder cannot be created or deleted. The services cannot override modes."""
    folders = [data, *(path for path in data.rglob("*") if path.is_dir())]
    modes = [folder.stat().st_mode for folder in folders]
    try:
        for folder in folders:
            folder.chmod(0o500)
        time.sleep(draw.uniform(0.2, LONGEST_OUTAGE))
    finally:
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)


def _restart(
    stack: Stack, emulators: ChaosEmulators, name: str, messages_lost: Callable[[], None]
) -> None:
    with emulators.stopped(name):
        time.sleep(0.5)
    if name == "pubsub":
        stack.set_up()  # it stores nothing on disk; Google's service does
        messages_lost()


def _hang(emulators: ChaosEmulators, name: str, draw: random.Random) -> None:
    with emulators.frozen(name):
        time.sleep(draw.uniform(0.2, LONGEST_OUTAGE))


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    with contextlib.suppress(psutil.NoSuchProcess, KeyError):
        yield
