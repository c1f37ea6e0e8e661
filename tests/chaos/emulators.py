"""The emulators below an experiment, and what can befall them."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from compose.emulators import RunningEmulators
from tests.chaos.cuttable_line import CuttableLine
from tests.support.emulators import addresses_in, running_emulators
from tests.support.stack import free_port

ADDRESS = "DATASTORE_EMULATOR_HOST"


class ChaosEmulators:
    """All three. Clients reach Datastore's over a line that is cut before it is told to stop.

    A stopping Datastore emulator writes its file, then forgets everything, and still answers for
    some milliseconds: that nothing is there, and that a write was done which is lost. No database
    does that to its clients when it goes away.
    """

    def __init__(self, running: RunningEmulators, datastore_line: CuttableLine) -> None:
        self._running = running
        self._lines = {"datastore": datastore_line}

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """Gone, and then back."""
        with ExitStack() as after:
            if line := self._lines.get(name):
                after.enter_context(line.cut())
            self._running.stop(name)
            after.callback(self._running.start, name)
            yield

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """It takes connections and answers nothing."""
        self._running.suspend(name)
        try:
            yield
        finally:
            self._running.resume(name)


@contextmanager
def running_behind_lines(folder: Path, corner: Mapping[str, str]) -> Iterator[ChaosEmulators]:
    """The emulators, reached at the addresses in `corner`."""
    addresses = addresses_in(corner)
    reached, behind = addresses[ADDRESS], free_port()
    addresses[ADDRESS] = f"127.0.0.1:{behind}"
    with (
        running_emulators(folder, addresses) as running,
        CuttableLine(int(reached.rpartition(":")[2]), behind) as line,
    ):
        yield ChaosEmulators(running, line)
