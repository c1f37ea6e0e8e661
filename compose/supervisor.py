"""Run Glimpse's processes on this machine: `python -m compose.supervisor`, or `make run`.

Shows every process's log lines by name and keeps them in a file, starts a process again when it
dies, stops them all on Ctrl-C or SIGTERM, and takes them along if it is killed itself.
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

from compose.children import end_with_parent
from compose.choice import CannotRun
from compose.data_dir_lock import FolderRefused, claimed, opened_log
from compose.programs import Plan, Program, plan
from core.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
RESTART_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds; one more quick death gives up
STEADY_AFTER = 20.0  # seconds; a process that lived this long starts over in that list
ASK_AT_FIRST, ASK_AT_LAST = 0.2, 2.0  # seconds between two looks whether a service is ready
_COLOURS = {"api": 36, "worker": 32, "queue": 35, "scheduler": 35, "set-up": 33}
_OTHERS_COLOUR = 37
_EMULATORS_COLOUR = 34


def taken_ports(wanted: Sequence[Program]) -> list[str]:
    """A sentence for each address that cannot be listened on."""
    sentences = []
    for program in wanted:
        if program.address is None:
            continue
        host, port = program.address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                sentences.append(_why_not(program, host, port, error))
    return sentences


def _why_not(program: Program, host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host}, for the {program.name}, is not free "
            f"({error.strerror}). Stop what uses it, or set {program.setting}."
        )
    # The host has no address, or one of another machine, or the port is for root alone.
    return (
        f"The {program.name} cannot listen on port {port} of {host}: {error.strerror}. "
        f"Change HOST or {program.setting}."
    )


class Supervisor:
    """Keeps a plan's programs running until `stop` is set, and their output in one place."""

    def __init__(self, wanted: Plan, grace: float, write: Callable[[str], None]) -> None:
        self.plan = wanted
        self.grace = grace
        self.stop = asyncio.Event()
        self.started = asyncio.Event()
        self.failed = False
        self._write = write
        self._services_ended = asyncio.Event()
        self._width = max(len(name) for name in ("glimpse", *(p.name for p in wanted.programs)))
        self._colours = {**_COLOURS, **{p.name: _EMULATORS_COLOUR for p in wanted.emulators}}
        self._coloured = sys.stdout.isatty()

    async def run(self) -> None:
        """Return when every program has ended after `stop`."""
        await asyncio.gather(
            self._run_services(),
            # They outlive the services, which use them to the end.
            *(self._keep(program, self._services_ended) for program in self.plan.emulators),
        )

    def say(self, name: str, line: str) -> None:
        prefix = f"{name:<{self._width}} |"
        self._write(f"{prefix} {line}")
        if self._coloured:
            prefix = f"\033[{self._colours.get(name, _OTHERS_COLOUR)}m{prefix}\033[0m"
        # Whoever watched may be gone, with the terminal or at the end of a pipe. All go on.
        with suppress(OSError):
            print(prefix, line, flush=True)

    async def _run_services(self) -> None:
        try:
            if self.plan.set_up:
                status = await self._run_once(self.plan.set_up, self.stop)
                if status and not self.stop.is_set():
                    self.say("glimpse", f"{self.plan.set_up.name} failed: giving up")
                    self.failed = True
                    self.stop.set()
            if not self.stop.is_set():
                self.started.set()
                await asyncio.gather(*(self._keep(p, self.stop) for p in self.plan.services))
        finally:
            self._services_ended.set()

    async def _keep(self, program: Program, until: asyncio.Event) -> None:
        quick_deaths = 0
        while not until.is_set():
            began = time.monotonic()
            status = await self._run_once(program, until)
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

    async def _run_once(self, program: Program, until: asyncio.Event) -> int:
        process = await asyncio.create_subprocess_exec(
            *program.argv,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **program.environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # A session of its own: Ctrl-C reaches the supervisor alone, which then ends the rest.
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        assert process.stdout is not None
        show = asyncio.create_task(self._show(program.name, process.stdout))
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(until.wait())
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            process.terminate()
            done, _ = await asyncio.wait({ended}, timeout=self.grace)
            if not done:
                self.say("glimpse", f"{program.name} did not stop in {self.grace:g} s: killed")
                process.kill()
        stopping.cancel()
        status = await ended
        # Whatever it started and left behind would hold its port, and its end of the pipe.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
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


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


async def _announce(supervisor: Supervisor, settings: Settings) -> None:
    """Say when everything answers, and what to do next."""
    api = settings.api_url
    waiting = {api, settings.worker_url}
    while not supervisor.started.is_set() and not supervisor.stop.is_set():
        await _wait(supervisor.stop, 0.2)
    pause = ASK_AT_FIRST
    # Without the environment's proxies: they do not lead to this machine.
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
            # Each refusal is a line of the service's log: they must not hide what it lacks.
            if refused:
                pause = min(1.5 * pause, ASK_AT_LAST)
    if not supervisor.stop.is_set():
        supervisor.say("glimpse", f"ready: {api}, documentation at {api}/docs")
        supervisor.say("glimpse", f"try:   curl -F img=@cat.jpg {api}/what/slow, or make demo")


async def supervise(settings: Settings) -> int:
    """Run `settings.backend` until stopped; the exit status."""
    wanted = plan(settings)
    for sentence in (taken := taken_ports(wanted.programs)):
        print(sentence, file=sys.stderr)
    if taken:
        return 1
    with opened_log(settings.data_dir) as write:
        supervisor = Supervisor(wanted, settings.shutdown_seconds + 2, write)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, supervisor.stop.set)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
            loop.add_signal_handler(signal.SIGHUP, supervisor.stop.set)
        supervisor.say("glimpse", wanted.title)
        announcement = asyncio.create_task(_announce(supervisor, settings))
        await supervisor.run()
        await announcement
        supervisor.say("glimpse", "stopped")
    return int(supervisor.failed)


def main() -> None:
    """Run what the settings name, without asking what this machine could run."""
    settings = load_settings()
    try:
        with claimed(settings.data_dir):
            raise SystemExit(asyncio.run(supervise(settings)))
    except (CannotRun, FolderRefused) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
