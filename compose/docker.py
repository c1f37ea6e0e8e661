"""Finds the Docker engine of this machine, and runs `docker compose` with compose.yaml."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "compose" / "compose.yaml"
BUNDLES = ROOT / "bundles"  # containers mount it, so MODEL_URI can be a folder below it
PROBE_SECONDS = 15.0  # longest time for the response of a local engine


def missing() -> list[str]:
    """A sentence for each requirement of compose.yaml that this machine does not meet."""
    if shutil.which("docker") is None:
        return ["Docker is not installed."]
    if not _succeeds("docker", "info", "--format", "{{.ServerVersion}}"):
        return ["No Docker engine is running."]
    if not _succeeds("docker", "compose", "version"):
        return [
            "The compose plugin of Docker is not installed: https://docs.docker.com/compose/install/."
        ]
    return []


def command(*arguments: str) -> list[str]:
    """The command line of `docker compose` for this project, with the settings of `.env`."""
    env_file = ROOT / ".env"
    options = ["--env-file", str(env_file)] if env_file.is_file() else []
    return ["docker", "compose", *options, "--file", str(FILE), *arguments]


def has_containers() -> bool:
    """Whether this project has containers, running or stopped."""
    listed = subprocess.run(command("ps", "--all", "--quiet"), capture_output=True, check=False)
    return listed.returncode == 0 and bool(listed.stdout.strip())


def replace_process(*arguments: str) -> NoReturn:
    """Replace this process by `docker compose`, which then receives Ctrl-C."""
    argv = command(*arguments)
    os.execvp(argv[0], argv)


def _succeeds(*argv: str) -> bool:
    try:
        return (
            subprocess.run(argv, capture_output=True, timeout=PROBE_SECONDS, check=False).returncode
            == 0
        )
    except (subprocess.TimeoutExpired, OSError):
        return False
