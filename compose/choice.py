"""Which local backend `make run` uses: the nearest to Google Cloud that this machine can run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dotenv import dotenv_values

Way = Literal["compose", "emulator", "embedded"]
WAYS: tuple[Way, ...] = get_args(Way)
Probe = Callable[[], list[str]]  # a sentence for each thing that is missing; none: it can run


class CannotRun(Exception):
    """What was asked for cannot run on this machine; the text says what is missing."""


@dataclass(frozen=True)
class Choice:
    """A way to run Glimpse, and why it was chosen."""

    way: Way
    reason: str


def choose(asked: str, compose_lacks: Probe, emulators_lack: Probe) -> Choice:
    """`asked` names a way, or is empty. A probe is called only where its answer matters.

    Raises CannotRun where `asked` names no way, or one that cannot run here.
    """
    if asked:
        return _forced(asked, compose_lacks, emulators_lack)
    no_compose = compose_lacks()
    if not no_compose:
        return Choice("compose", "a Docker engine answers.")
    no_emulators = emulators_lack()
    if not no_emulators:
        return Choice("emulator", f"gcloud's emulators are installed. {' '.join(no_compose)}")
    lacks = " ".join([*no_compose, *no_emulators])
    return Choice("embedded", f"it needs nothing but Python. {lacks}")


def asked_backend(environment: Mapping[str, str], env_file: Path) -> str:
    """What `BACKEND` says, in the environment or in `env_file`; empty if neither names one."""
    return environment.get("BACKEND") or dotenv_values(env_file).get("BACKEND") or ""


def _forced(asked: str, compose_lacks: Probe, emulators_lack: Probe) -> Choice:
    for way in WAYS:
        if way == asked:
            break
    else:
        raise CannotRun(
            f"BACKEND={asked} is nothing that make run can start: it knows {', '.join(WAYS)}."
        )
    lacks = {"compose": compose_lacks, "emulator": emulators_lack}.get(way, list)()
    if lacks:
        raise CannotRun(f"BACKEND={way} cannot run here. {' '.join(lacks)}")
    return Choice(way, "BACKEND asks for it.")
