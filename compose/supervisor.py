"""Runs the processes of Glimpse on this machine: `python -m compose.supervisor`, or `make run`.

It prints the log lines of all processes with their names and also writes them to a file. It
restarts a process that ends, and stops all processes on Ctrl-C or SIGTERM. If the supervisor is
killed, its processes end too.
"""

import asyncio
import errno
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx2

from compose.choice import CannotRun
from compose.data_dir_lock import DataDirError, held, opened_log
from compose.emulators import Check
from compose.install import in_use
from compose.programs import Plan, Program, plan
from compose.terminal import shortened
from core.child_process import end_with_parent
from core.domain.policy import SHUTDOWN_SECONDS
from core.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
# How a Python program ends if a package or a file of its environment is missing.
_MISSING = re.compile(r"(?:ModuleNotFoundError|ImportError|Error while finding module).*")
REPAIR = "Its packages are incomplete: run make stop, make clean, then make run"
RESTART_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds. After another early exit, all processes stop
DEFAULT_URL = "http://127.0.0.1:8080"  # the client's default
EARLY_SECONDS = 20.0  # a process that ran longer than this restarts with the first delay
FIRST_POLL, LAST_POLL = 0.2, 2.0  # seconds between two requests for `/ready`
CHECK_INTERVAL = 10.0  # seconds between two checks of a process that may hang
CHECK_SECONDS = 10.0  # longest time for the response to a check
FAILED_CHECKS = 3  # in a row, after which a process hangs
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

    def __init__(
        self,
        plan: Plan,
        stop_seconds: float,
        write: Callable[[str], None],
        *,
        json_lines: bool = False,
        short: bool = False,
    ) -> None:
        """A program may take `stop_seconds` to stop. `write` gets each line of output.

        With `json_lines`, each line is a JSON object and has no prefix. With `short`, the terminal
        shows `compose.terminal.shortened` lines.
        """
        self.plan = plan
        self._json_lines = json_lines
        self._short = short
        self.stop_seconds = stop_seconds
        self.stop = asyncio.Event()
        self.started = asyncio.Event()
        self.failed = False
        self._last_lines: dict[str, str] = {}  # the last lines of each program's output
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
        """Write a line of the process `name` to the log and to the terminal."""
        if self._json_lines:
            line = line if line[:1] == "{" and line[-1:] == "}" else _json_line(name, line)
            self._write(line)
            with suppress(OSError):
                print(line, flush=True)
            return
        prefix = f"{name:<{self._width}} |"
        self._write(f"{prefix} {line}")
        if self._short:
            shown = shortened(line)
            if shown is None:
                return
            line = shown
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
            ending = await self._ending(program, until)
            if self.stop.is_set():
                return
            early_exits = 0 if time.monotonic() - began > EARLY_SECONDS else early_exits + 1
            if early_exits > len(RESTART_DELAYS):
                self.show("glimpse", f"{program.name} ends repeatedly ({ending}): stopping")
                self.failed = True
                self.stop.set()
                return
            delay = RESTART_DELAYS[max(early_exits - 1, 0)]
            self.show("glimpse", f"{program.name} ended ({ending}): restarting it in {delay:g} s")
            await _wait(self.stop, delay)

    async def _ending(self, program: Program, until: asyncio.Event) -> str:
        """Run the program, and say how it ended."""
        self._last_lines[program.name] = ""
        try:
            status = await self._run_once(program, until)
        except OSError as error:
            return f"cannot start: {error.filename or program.argv[0]}: {error.strerror}. {REPAIR}"
        ending = f"signal {-status}" if status < 0 else f"status {status}"
        if missing := _MISSING.search(self._last_lines[program.name]):
            return f"{ending}: {missing[0]}. {REPAIR}"
        return ending

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
        hanging = asyncio.create_task(_hang(program.check))
        await asyncio.wait({ended, stopping, hanging}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            if not stopping.done():
                self.show("glimpse", f"{program.name} does not respond: stopping it")
            process.terminate()
            done, _ = await asyncio.wait({ended}, timeout=self.stop_seconds)
            if not done:
                self.show(
                    "glimpse", f"{program.name} did not stop in {self.stop_seconds:g} s: killing it"
                )
                process.kill()
        stopping.cancel()
        hanging.cancel()
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
            text = line.decode("utf-8", "replace").rstrip()
            self._last_lines[name] = text
            self.show(name, text)


def _json_line(name: str, line: str) -> str:
    """A line of text in the form of the services' JSON lines."""
    now = datetime.now(UTC).isoformat()
    return json.dumps({"message": line, "severity": "INFO", "service": name, "time": now})


async def _hang(check: Check | None) -> None:
    """Return when several checks in a row get no response in time. Only timeouts count.

    The checks begin with the first response: a process that starts is not one that hangs.
    """
    if check is None:
        await asyncio.Event().wait()  # until this task is cancelled
        return
    failed, responded = 0, False
    # Without proxies of the environment, which do not lead to this machine.
    async with httpx2.AsyncClient(trust_env=False, timeout=CHECK_SECONDS) as client:
        while failed < FAILED_CHECKS:
            await asyncio.sleep(CHECK_INTERVAL)
            try:
                await client.request(
                    "GET" if check.body is None else "POST",
                    check.url,
                    content=check.body,
                    headers={"Content-Type": "application/json"},
                )
            except httpx2.TimeoutException:
                failed += responded
            except httpx2.TransportError:
                failed = 0  # for example, no process listens: the supervisor sees its end
            else:
                failed, responded = 0, True


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
    async with httpx2.AsyncClient(trust_env=False) as client:
        while waiting and not supervisor.stop.is_set():
            refused = False
            for url in list(waiting):
                try:
                    answer = await client.get(f"{url}/ready", timeout=3)
                except httpx2.TransportError:
                    continue
                if answer.status_code == httpx2.codes.OK:
                    waiting.discard(url)
                else:
                    refused = True
            if waiting:
                await _wait(supervisor.stop, pause)
            # The service logs each refusal. Many of them would hide the reason.
            if refused:
                pause = min(1.5 * pause, LAST_POLL)
    if not supervisor.stop.is_set():
        show = partial(supervisor.show, "glimpse")
        show(f"ready: {api} is the page. The documentation of the API is at {api}/docs")
        show("In another terminal:")
        show(f"  {label_command(settings)}")
        show("  make demo")


def label_command(settings: Settings) -> str:
    """The command that labels a photo with this service."""
    program = Path(sys.executable).parent / "glimpse"
    shown = program.relative_to(ROOT) if program.is_relative_to(ROOT) else program
    address = "" if settings.api_url == DEFAULT_URL else f"GLIMPSE_URL={settings.api_url} "
    return f"{address}{shown} label PATH"


async def supervise(settings: Settings) -> int:
    """Run `settings.backend` until it is stopped. Returns the exit status."""
    programs = plan(settings)
    if sentences := unavailable_addresses(programs.programs):
        print("\n".join(sentences), file=sys.stderr)
        return 1
    with opened_log(settings.data_dir) as write:
        json_lines = settings.log_format == "json"
        supervisor = Supervisor(
            programs,
            SHUTDOWN_SECONDS + 2,
            write,
            json_lines=json_lines,
            short=sys.stdout.isatty() and settings.log_level != "debug",
        )
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
        with held(settings.data_dir, settings.api_url), in_use(Path(sys.prefix)):
            raise SystemExit(asyncio.run(supervise(settings)))
    except (CannotRun, DataDirError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
