"""Chooses the backend of `make run`: the one most like Google Cloud that this machine can run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dotenv import dotenv_values

Way = Literal["compose", "emulator", "embedded"]
WAYS: tuple[Way, ...] = get_args(Way)
Probe = Callable[[], list[str]]  # returns a sentence for each missing requirement


class CannotRun(Exception):
    """The selected backend cannot run on this machine. The text says what is missing."""


@dataclass(frozen=True)
class Choice:
    """A way to run Glimpse, and the reason for it."""

    way: Way
    reason: str


def choose(asked: str, compose_lacks: Probe, emulators_lack: Probe) -> Choice:
    """`asked` is a way, or empty to let this function choose. Calls a probe only if it needs to.

    Raises CannotRun if `asked` is not a way, or one that cannot run here.
    """
    if asked:
        return _forced(asked, compose_lacks, emulators_lack)
    no_compose = compose_lacks()
    if not no_compose:
        return Choice("compose", "a Docker engine is running.")
    no_emulators = emulators_lack()
    if not no_emulators:
        return Choice("emulator", f"gcloud's emulators are installed. {' '.join(no_compose)}")
    lacks = " ".join([*no_compose, *no_emulators])
    return Choice("embedded", f"it needs only Python. {lacks}")


def asked_backend(environment: Mapping[str, str], env_file: Path) -> str:
    """The value of `BACKEND` in the environment or else in `env_file`, or an empty string."""
    return environment.get("BACKEND") or dotenv_values(env_file).get("BACKEND") or ""


def _forced(asked: str, compose_lacks: Probe, emulators_lack: Probe) -> Choice:
    for way in WAYS:
        if way == asked:
            break
    else:
        raise CannotRun(f"make run cannot start BACKEND={asked}. It can start {', '.join(WAYS)}.")
    lacks = {"compose": compose_lacks, "emulator": emulators_lack}.get(way, list)()
    if lacks:
        raise CannotRun(f"BACKEND={way} cannot run here. {' '.join(lacks)}")
    return Choice(way, "BACKEND selects it.")
