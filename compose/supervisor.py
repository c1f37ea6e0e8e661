"""Run Glimpse's processes on this machine: `python -m compose.supervisor`, or `make run`.

Shows every process's log lines by name, starts a process again when it dies, stops them all on
Ctrl-C or SIGTERM, and takes them along if it is killed itself.
"""

import asyncio
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from core.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
RESTART_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds; one more quick death gives up
STEADY_AFTER = 20.0  # seconds; a process that lived this long starts over in that list
_COLOURS = {"glimpse": 37, "api": 36, "worker": 32, "queue": 35}
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Program:
    """One process to keep running. `port` is checked before anything starts."""

    name: str
    module: str
    port: int | None = None

    @property
    def argv(self) -> list[str]:
        return [sys.executable, "-m", self.module]


def programs(settings: Settings) -> list[Program]:
    """What the embedded backend needs, in the order in which to start it."""
    return [
        Program("worker", "worker", settings.worker_port),
        Program("queue", "core.backends.embedded.queue"),
        Program("api", "app", settings.api_port),
    ]


def taken_ports(host: str, wanted: Sequence[Program]) -> list[str]:
    """A sentence for each port that cannot be listened on."""
    sentences = []
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for program in wanted:
        if program.port is None:
            continue
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, program.port))
            except OSError as error:
                sentences.append(
                    f"Port {program.port} on {host}, for the {program.name}, is not free "
                    f"({error.strerror}). Stop what uses it, or set {program.name.upper()}_PORT."
                )
    return sentences


class Supervisor:
    """Keeps programs running until `stop` is set, and their output in one place."""

    def __init__(self, wanted: Sequence[Program], grace: float) -> None:
        self.programs = wanted
        self.grace = grace
        self.stop = asyncio.Event()
        self.failed = False
        self._width = max(len(name) for name in _COLOURS)
        self._coloured = sys.stdout.isatty()

    async def run(self) -> None:
        """Return when every program has ended after `stop`."""
        await asyncio.gather(*(self._keep(program) for program in self.programs))

    def say(self, name: str, line: str) -> None:
        prefix = f"{name:<{self._width}} |"
        if self._coloured:
            prefix = f"\033[{_COLOURS.get(name, 37)}m{prefix}\033[0m"
        print(prefix, line, flush=True)

    async def _keep(self, program: Program) -> None:
        quick_deaths = 0
        while not self.stop.is_set():
            began = time.monotonic()
            status = await self._run_once(program)
            if self.stop.is_set():
                return
            quick_deaths = 0 if time.monotonic() - began > STEADY_AFTER else quick_deaths + 1
            ending = f"signal {-status}" if status < 0 else f"status {status}"
            if quick_deaths > len(RESTART_DELAYS):
                self.say("glimpse", f"{program.name} keeps ending ({ending}): giving up")
                self.failed = True
                self.stop.set()
                return
            delay = RESTART_DELAYS[max(quick_deaths - 1, 0)]
            self.say(
                "glimpse", f"{program.name} ended ({ending}): starting it again in {delay:g} s"
            )
            await _wait(self.stop, delay)

    async def _run_once(self, program: Program) -> int:
        process = await asyncio.create_subprocess_exec(
            *program.argv,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # A session of its own: Ctrl-C reaches the supervisor alone, which then ends the rest.
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        assert process.stdout is not None
        show = asyncio.create_task(self._show(program.name, process.stdout))
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self.stop.wait())
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            process.terminate()
            done, _ = await asyncio.wait({ended}, timeout=self.grace)
            if not done:
                self.say("glimpse", f"{program.name} did not stop in {self.grace:g} s: killed")
                process.kill()
        stopping.cancel()
        status = await ended
        await show
        return status

    async def _show(self, name: str, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # a line longer than the stream's limit is shown in pieces
                line = await stream.read(65_536)
            if not line:
                return
            self.say(name, line.decode("utf-8", "replace").rstrip())


def end_with_parent() -> None:
    """In the child: end when the supervisor dies, however it dies (Linux, prctl(2))."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


async def _announce(supervisor: Supervisor, settings: Settings) -> None:
    """Say when everything answers, and what to do next."""
    api = f"http://{settings.host}:{settings.api_port}"
    waiting = {api, settings.worker_url}
    async with httpx.AsyncClient() as client:
        while waiting and not supervisor.stop.is_set():
            for url in list(waiting):
                try:
                    if (await client.get(f"{url}/ready", timeout=3)).status_code == httpx.codes.OK:
                        waiting.discard(url)
                except httpx.TransportError:
                    pass
            await _wait(supervisor.stop, 0.2)
    if not supervisor.stop.is_set():
        supervisor.say("glimpse", f"ready: {api}, documentation at {api}/docs")
        supervisor.say("glimpse", f"try:   curl -F img=@cat.jpg {api}/what/slow, or make demo")


async def supervise(settings: Settings) -> int:
    """Run until stopped; the exit status."""
    wanted = programs(settings)
    for sentence in (taken := taken_ports(settings.host, wanted)):
        print(sentence, file=sys.stderr)
    if taken:
        return 1
    supervisor = Supervisor(wanted, grace=settings.shutdown_seconds + 2)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.stop.set)
    supervisor.say(
        "glimpse", f"embedded backend in {settings.data_dir}, model {settings.model_uri}"
    )
    announcement = asyncio.create_task(_announce(supervisor, settings))
    await supervisor.run()
    await announcement
    supervisor.say("glimpse", "stopped")
    return int(supervisor.failed)


def main() -> None:
    raise SystemExit(asyncio.run(supervise(load_settings())))


if __name__ == "__main__":
    main()
