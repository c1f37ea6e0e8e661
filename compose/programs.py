"""The processes that `make run` runs for each backend, as data."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from compose.choice import CannotRun
from compose.emulators import Check, EmulatorsMissing, emulators
from core.settings import Settings


@dataclass(frozen=True)
class Program:
    """One process. `address` must be free before it starts. `setting` changes the address.

    A process that does not respond to `check` hangs, and is restarted.
    """

    name: str
    argv: tuple[str, ...]
    address: tuple[str, int] | None = None
    setting: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    check: Check | None = None


@dataclass(frozen=True)
class Plan:
    """`services` start after `set_up` has succeeded, and stop before `emulators` do."""

    title: str
    services: tuple[Program, ...]
    emulators: tuple[Program, ...] = ()
    set_up: Program | None = None

    @property
    def programs(self) -> tuple[Program, ...]:
        return (*self.emulators, *((self.set_up,) if self.set_up else ()), *self.services)


def plan(settings: Settings) -> Plan:
    """The processes of `settings.backend`. Raises CannotRun with what is missing."""
    worker = _service("worker", "worker", settings.host, settings.worker_port, "WORKER_PORT")
    api = _service("api", "app", settings.host, settings.api_port, "API_PORT")
    where = f"{settings.data_dir}, model {settings.model_uri}"
    if settings.backend == "embedded":
        queue = Program("queue", _module("core.backends.embedded.queue"))
        return Plan(f"embedded backend in {where}", (worker, queue, api))
    if settings.backend == "emulator":
        return Plan(
            f"Google's emulators in {where}",
            # The scheduler replaces Cloud Scheduler and Terraform.
            (worker, Program("scheduler", _module("compose.scheduler")), api),
            _emulators(settings),
            Program("set-up", _module("compose.emulator_setup")),
        )
    raise CannotRun("BACKEND=gcp runs on Google Cloud. make run starts local backends only.")


def _service(name: str, module: str, host: str, port: int, setting: str) -> Program:
    # Each service gets its own PORT: one in the environment would apply to both.
    return Program(name, _module(module), (host, port), setting, {"PORT": str(port)})


def _emulators(settings: Settings) -> tuple[Program, ...]:
    try:
        wanted = emulators(settings, settings.data_dir / "emulators")
    except EmulatorsMissing as error:
        raise CannotRun(f"The emulators cannot run here. {error}") from None
    return tuple(
        Program(e.name, e.argv, (e.host, e.port), f"{e.name.upper()}_EMULATOR_HOST", check=e.check)
        for e in wanted
    )


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name)
