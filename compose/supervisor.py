"""Runs the processes of Glimpse on this machine: `python -m compose.supervisor`, or `make run`.

It prints the log lines of all processes with their names and also writes them to a file. It
restarts a process that ends, and stops all processes on Ctrl-C or SIGTERM. If the supervisor is
killed, its processes end too.
"""

import asyncio
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from compose.choice import CannotRun
from compose.data_dir_lock import DataDirError, held, opened_log
from compose.programs import Plan, Program, plan
from core.child_process import end_with_parent
from core.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
RESTART_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds. After another early exit, all processes stop
EARLY_SECONDS = 20.0  # a process that ran longer than this restarts with the first delay
FIRST_POLL, LAST_POLL = 0.2, 2.0  # seconds between two requests for `/ready`
_COLOURS = {"api": 36, "worker": 32, "queue": 35, "scheduler": 35, "set-up": 33}
_DEFAULT_COLOUR = 37
_EMULATOR_COLOUR = 34


def unavailable_addresses(programs: Sequence[Program]) -> list[str]:
    """A sentence for each address that a program cannot listen on."""
    sentences = []
    for program in programs:
        if program.address is None:
            continue
        host, port = program.address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                sentences.append(_sentence(program, host, port, error))
    return sentences


def _sentence(program: Program, host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"The {program.name} needs port {port} on {host}, but another program uses it. "
            f"Stop that program, or set {program.setting}."
        )
    # For example, the host has no address on this machine, or only root may use the port.
    return (
        f"The {program.name} cannot listen on port {port} of {host}: {error.strerror}. "
        f"Change HOST or {program.setting}."
    )


class Supervisor:
    """Runs the programs of a plan until `stop` is set, and merges their output."""

    def __init__(self, plan: Plan, stop_seconds: float, write: Callable[[str], None]) -> None:
        """A program may take `stop_seconds` to stop. `write` gets each line of output."""
        self.plan = plan
        self.stop_seconds = stop_seconds
        self.stop = asyncio.Event()
        self.started = asyncio.Event()
        self.failed = False
        self._write = write
        self._services_ended = asyncio.Event()
        self._width = max(len(name) for name in ("glimpse", *(p.name for p in plan.programs)))
        self._colours = {**_COLOURS, **{p.name: _EMULATOR_COLOUR for p in plan.emulators}}
        self._coloured = sys.stdout.isatty()

    async def run(self) -> None:
        """Return when every program has ended, after `stop` is set."""
        await asyncio.gather(
            self._run_services(),
            # The services need the emulators until they have ended.
            *(self._keep(program, self._services_ended) for program in self.plan.emulators),
        )

    def show(self, name: str, line: str) -> None:
        prefix = f"{name:<{self._width}} |"
        self._write(f"{prefix} {line}")
        if self._coloured:
            prefix = f"\033[{self._colours.get(name, _DEFAULT_COLOUR)}m{prefix}\033[0m"
        # The terminal or pipe may be closed. The programs continue.
        with suppress(OSError):
            print(prefix, line, flush=True)

    async def _run_services(self) -> None:
        try:
            if self.plan.set_up:
                status = await self._run_once(self.plan.set_up, self.stop)
                if status and not self.stop.is_set():
                    self.show("glimpse", f"{self.plan.set_up.name} failed: stopping")
                    self.failed = True
                    self.stop.set()
            if not self.stop.is_set():
                self.started.set()
                await asyncio.gather(*(self._keep(p, self.stop) for p in self.plan.services))
        finally:
            self._services_ended.set()

    async def _keep(self, program: Program, until: asyncio.Event) -> None:
        early_exits = 0
        while not until.is_set():
            began = time.monotonic()
            status = await self._run_once(program, until)
            if self.stop.is_set():
                return
            early_exits = 0 if time.monotonic() - began > EARLY_SECONDS else early_exits + 1
            ending = f"signal {-status}" if status < 0 else f"status {status}"
            if early_exits > len(RESTART_DELAYS):
                self.show("glimpse", f"{program.name} ends repeatedly ({ending}): stopping")
                self.failed = True
                self.stop.set()
                return
            delay = RESTART_DELAYS[max(early_exits - 1, 0)]
            self.show("glimpse", f"{program.name} ended ({ending}): restarting it in {delay:g} s")
            await _wait(self.stop, delay)

    async def _run_once(self, program: Program, until: asyncio.Event) -> int:
        process = await asyncio.create_subprocess_exec(
            *program.argv,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **program.environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # In another session: Ctrl-C reaches only the supervisor, which stops the others.
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        assert process.stdout is not None
        output = asyncio.create_task(self._forward(program.name, process.stdout))
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(until.wait())
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            process.terminate()
            done, _ = await asyncio.wait({ended}, timeout=self.stop_seconds)
            if not done:
                self.show(
                    "glimpse", f"{program.name} did not stop in {self.stop_seconds:g} s: killing it"
                )
                process.kill()
        stopping.cancel()
        status = await ended
        # Child processes that it leaves would keep its port and its end of the pipe open.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await output
        return status

    async def _forward(self, name: str, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # a line longer than the limit of the stream comes in pieces
                line = await stream.read(65_536)
            if not line:
                return
            self.show(name, line.decode("utf-8", "replace").rstrip())


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


async def _announce(supervisor: Supervisor, settings: Settings) -> None:
    """Print a message when both services are ready, with what to do next."""
    api = settings.api_url
    waiting = {api, settings.worker_url}
    while not supervisor.started.is_set() and not supervisor.stop.is_set():
        await _wait(supervisor.stop, 0.2)
    pause = FIRST_POLL
    # Without proxies of the environment, which do not lead to this machine.
    async with httpx.AsyncClient(trust_env=False) as client:
        while waiting and not supervisor.stop.is_set():
            refused = False
            for url in list(waiting):
                try:
                    answer = await client.get(f"{url}/ready", timeout=3)
                except httpx.TransportError:
                    continue
                if answer.status_code == httpx.codes.OK:
                    waiting.discard(url)
                else:
                    refused = True
            if waiting:
                await _wait(supervisor.stop, pause)
            # The service logs each refusal. Many of them would hide the reason.
            if refused:
                pause = min(1.5 * pause, LAST_POLL)
    if not supervisor.stop.is_set():
        supervisor.show("glimpse", f"ready: {api}. The documentation is at {api}/docs")
        supervisor.show("glimpse", f"try:   curl -F img=@cat.jpg {api}/what/slow, or make demo")


async def supervise(settings: Settings) -> int:
    """Run `settings.backend` until it is stopped. Returns the exit status."""
    programs = plan(settings)
    if sentences := unavailable_addresses(programs.programs):
        print("\n".join(sentences), file=sys.stderr)
        return 1
    with opened_log(settings.data_dir) as write:
        supervisor = Supervisor(programs, settings.shutdown_seconds + 2, write)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, supervisor.stop.set)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
            loop.add_signal_handler(signal.SIGHUP, supervisor.stop.set)
        supervisor.show("glimpse", programs.title)
        announcement = asyncio.create_task(_announce(supervisor, settings))
        await supervisor.run()
        await announcement
        supervisor.show("glimpse", "stopped")
    return int(supervisor.failed)


def main() -> None:
    """Run the backend of the settings, without a check of what this machine can run."""
    settings = load_settings()
    try:
        with held(settings.data_dir):
            raise SystemExit(asyncio.run(supervise(settings)))
    except (CannotRun, DataDirError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
