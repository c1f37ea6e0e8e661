"""Runs, stops and shows Glimpse on this machine, and deletes its data."""

import argparse
import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

from compose import data_dir_lock, docker, emulators
from compose.choice import CannotRun, asked_backend, choose
from compose.install import in_use
from compose.supervisor import supervise
from core.domain.policy import SHUTDOWN_SECONDS
from core.settings import ENV_FILE, Settings, load_settings

LINES = 200  # lines of the log that `logs` prints first
STOP_SECONDS = 30.0  # time limit for the emulators, which stop after the services


def run(asked: str) -> int:
    """Choose a backend, print the reason, and run it until Ctrl-C. Returns the exit status."""
    choice = choose(asked, docker.missing, emulators.missing)
    print(f"Backend: {choice.way}, because {choice.reason}", flush=True)
    settings = _settings("emulator" if choice.way == "compose" else choice.way)
    if choice.way == "compose":
        docker.BUNDLES.mkdir(exist_ok=True)
        docker.BUNDLES.chmod(0o755)  # the user of the containers reads it
        print(f"The page will be at http://127.0.0.1:{settings.api_port}", flush=True)
        mounts = docker.write_mounts(settings)
        # `docker compose` takes the lock over. So `stop` finds it while it still builds images.
        with data_dir_lock.held(settings.data_dir, settings.api_url, way=choice.way):
            docker.replace_process("up", "--build", "--remove-orphans", more=mounts)
    with data_dir_lock.held(settings.data_dir, settings.api_url), in_use(Path(sys.prefix)):
        return asyncio.run(supervise(settings))


def stop(asked: str) -> int:
    """Stop the processes that use the data folder, and the containers of this project."""
    settings = _settings("embedded")
    stopped = []
    composed = _is_compose(settings.data_dir)
    if (asked != "compose" or composed) and data_dir_lock.stop_holder(
        settings.data_dir, SHUTDOWN_SECONDS + STOP_SECONDS
    ):
        stopped.append("docker compose" if composed else "processes")
    if _containers(asked):
        subprocess.run(docker.command("down"), check=True)
        stopped.append("containers")
    print(f"Stopped: {', '.join(stopped)}." if stopped else _nothing_runs(settings))
    return 0


def _nothing_runs(settings: Settings) -> str:
    """What `stop` says if it stopped nothing."""
    sentence = f"Nothing was running: no process uses {settings.data_dir.resolve()}."
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", settings.api_port)) == 0:
            sentence += (
                f" A program listens on port {settings.api_port}. If it is Glimpse, set DATA_DIR "
                "to its folder."
            )
    return sentence


def logs(asked: str) -> int:
    """Follow the log of the running processes or containers. If none runs, print its end."""
    data_dir = _settings("embedded").data_dir
    file = data_dir_lock.log_file(data_dir)
    running = data_dir_lock.holder(data_dir) is not None and not _is_compose(data_dir)
    if asked != "compose" and running:
        os.execvp("tail", ["tail", "-n", str(LINES), "-F", str(file)])
    if _containers(asked):
        docker.replace_process("logs", "--follow", f"--tail={LINES}")
    if asked != "compose" and file.is_file():
        with file.open(encoding="utf-8", errors="replace") as lines:
            sys.stdout.writelines(deque(lines, LINES))
        print("Glimpse is not running. These are the last lines of its log.")
        return 0
    print("There is no log, because Glimpse has not run here.")
    return 1


def purge(asked: str) -> int:
    """Stop Glimpse, then delete its files in DATA_DIR and the volumes of its containers.

    Asks first, unless YES=1 is set.
    """
    data_dir = _settings("embedded").data_dir
    if not _confirmed(data_dir):
        print("Nothing was deleted. YES=1 deletes without a question.")
        return 1
    stop(asked)
    if asked != "compose" and data_dir.is_dir():
        others = data_dir_lock.purge(data_dir)
        note = f" Other files remain: {', '.join(others)}." if others else ""
        print(f"Deleted the data of Glimpse in {data_dir}.{note}")
    if asked in ("", "compose") and not docker.missing():
        subprocess.run(docker.command("down", "--volumes"), check=True)
    return 0


def _confirmed(data_dir: Path) -> bool:
    """Whether the user wants to delete the data."""
    if os.environ.get("YES") == "1":
        return True
    if not sys.stdin.isatty():
        return False
    question = f"Delete all images, results, keys and messages of Glimpse in {data_dir.resolve()}"
    try:
        answer = input(f"{question}, and of its containers? [y/N] ")
    except EOFError:
        print()
        return False
    return answer.strip().lower() in ("y", "yes")


def _is_compose(data_dir: Path) -> bool:
    """Whether `docker compose` holds the lock of the data folder."""
    return data_dir_lock.holder_way(data_dir) == "compose"


def _containers(asked: str) -> bool:
    """Whether the command applies to containers of this project."""
    if asked == "compose" and (lacks := docker.missing()):
        raise CannotRun(f"BACKEND=compose cannot run here. {' '.join(lacks)}")
    return asked in ("", "compose") and bool(shutil.which("docker")) and docker.has_containers()


def _settings(backend: str) -> Settings:
    """The settings with this backend, which child processes inherit."""
    os.environ["BACKEND"] = backend
    return load_settings()


def main() -> None:
    commands = {"run": run, "stop": stop, "logs": logs, "purge": purge}
    parser = argparse.ArgumentParser(prog="python -m compose")
    parser.add_argument("command", choices=commands)
    command = commands[parser.parse_args().command]
    try:
        status = command(asked_backend(os.environ, Path(ENV_FILE)))
    except (CannotRun, data_dir_lock.DataDirError) as error:
        raise SystemExit(str(error)) from None
    except subprocess.CalledProcessError as failed:
        raise SystemExit(f"docker compose failed with status {failed.returncode}.") from None
    except KeyboardInterrupt:
        status = 130
    raise SystemExit(status)
