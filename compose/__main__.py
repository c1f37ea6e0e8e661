"""`python -m compose run|stop|logs|purge`: Glimpse on this machine, as `make` calls it."""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path

from compose import data_dir_lock, docker, emulators
from compose.choice import CannotRun, asked_backend, choose
from compose.supervisor import supervise
from core.settings import Settings, load_settings

LINES = 200  # of the log that `logs` begins with
ENV_FILE = Path(".env")
# What a stopping supervisor may need beyond the services' own time: emulators end after services.
STOP_SECONDS = 30.0


def run(asked: str) -> int:
    """Choose, say what and why, and run it until Ctrl-C; the exit status."""
    choice = choose(asked, docker.missing, emulators.missing)
    print(f"Backend: {choice.way}, because {choice.reason}", flush=True)
    settings = _settings("emulator" if choice.way == "compose" else choice.way)
    if choice.way == "compose":
        docker.BUNDLES.mkdir(exist_ok=True)
        print(f"The API will be at http://127.0.0.1:{settings.api_port}/docs", flush=True)
        docker.become("up", "--build", "--remove-orphans")
    with data_dir_lock.claimed(settings.data_dir):
        return asyncio.run(supervise(settings))


def stop(asked: str) -> int:
    """End what runs: processes of this data folder, containers of this project."""
    settings = _settings("embedded")
    ended = []
    if asked != "compose" and data_dir_lock.stop(
        settings.data_dir, settings.shutdown_seconds + STOP_SECONDS
    ):
        ended.append("processes")
    if _containers(asked):
        subprocess.run(docker.command("down"), check=True)
        ended.append("containers")
    print(f"Stopped: {', '.join(ended)}." if ended else "Nothing was running.")
    return 0


def logs(asked: str) -> int:
    """Follow the log of what runs; of processes that have ended, show the end."""
    data_dir = _settings("embedded").data_dir
    file = data_dir_lock.log_file(data_dir)
    alive = data_dir_lock.running(data_dir) is not None
    if asked != "compose" and alive:
        os.execvp("tail", ["tail", "-n", str(LINES), "-F", str(file)])
    if _containers(asked):
        docker.become("logs", "--follow", f"--tail={LINES}")
    if asked != "compose" and file.is_file():
        with file.open(errors="replace") as lines:
            sys.stdout.writelines(deque(lines, LINES))
        print("Glimpse is not running; these were its last lines.")
        return 0
    print("There are no logs: nothing has run here.")
    return 1


def purge(asked: str) -> int:
    """Stop, then delete the data: DATA_DIR's, and the containers' volumes."""
    stop(asked)
    data_dir = _settings("embedded").data_dir
    if asked != "compose" and data_dir.is_dir():
        left = data_dir_lock.purge(data_dir)
        note = f"; not ours, and left there: {', '.join(left)}" if left else ""
        print(f"Deleted Glimpse's data in {data_dir}{note}.")
    if asked in ("", "compose") and not docker.missing():
        subprocess.run(docker.command("down", "--volumes"), check=True)
    return 0


def _containers(asked: str) -> bool:
    if asked == "compose" and (lacks := docker.missing()):
        raise CannotRun(f"BACKEND=compose cannot run here. {' '.join(lacks)}")
    return asked in ("", "compose") and bool(shutil.which("docker")) and docker.has_containers()


def _settings(backend: str) -> Settings:
    """The settings with this backend, for this process and those that it starts."""
    os.environ["BACKEND"] = backend
    return load_settings()


def main() -> None:
    commands = {"run": run, "stop": stop, "logs": logs, "purge": purge}
    parser = argparse.ArgumentParser(prog="python -m compose")
    parser.add_argument("command", choices=commands)
    command = commands[parser.parse_args().command]
    try:
        status = command(asked_backend(os.environ, ENV_FILE))
    except (CannotRun, data_dir_lock.FolderRefused) as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        status = 130
    raise SystemExit(status)


if __name__ == "__main__":
    main()
