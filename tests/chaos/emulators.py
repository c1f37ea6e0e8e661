"""The emulators of an experiment, and their faults."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from compose.emulators import RunningEmulators
from tests.chaos.cuttable_line import CuttableLine
from tests.support.emulators import addresses_in, running_emulators
from tests.support.stack import free_port

ADDRESS = "DATASTORE_EMULATOR_HOST"


class ChaosEmulators:
    """The three emulators. Clients reach Datastore's through a proxy that is cut before it stops.

    A stopping Datastore emulator writes its file, clears its memory, and still responds for some
    milliseconds: it reports entities as missing and confirms writes that are lost. A real database
    does not.
    """

    def __init__(self, running: RunningEmulators, datastore_line: CuttableLine) -> None:
        self._running = running
        self._lines = {"datastore": datastore_line}

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """Stopped, and started again."""
        with ExitStack() as after:
            if line := self._lines.get(name):
                after.enter_context(line.cut())
            self._running.stop(name)
            after.callback(self._running.start, name)
            yield

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """It accepts connections and does not respond."""
        self._running.suspend(name)
        try:
            yield
        finally:
            self._running.resume(name)


@contextmanager
def running_behind_lines(folder: Path, namespace: Mapping[str, str]) -> Iterator[ChaosEmulators]:
    """The emulators at the addresses in `namespace`."""
    addresses = addresses_in(namespace)
    reached, behind = addresses[ADDRESS], free_port()
    addresses[ADDRESS] = f"127.0.0.1:{behind}"
    with (
        running_emulators(folder, addresses) as running,
        CuttableLine(int(reached.rpartition(":")[2]), behind) as line,
    ):
        yield ChaosEmulators(running, line)
