"""The Docker engine of this machine, and the commands that run `compose/compose.yaml` on it."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "compose" / "compose.yaml"
BUNDLES = ROOT / "bundles"  # mounted, so that MODEL_URI may name one of them
PATIENCE = 15.0  # seconds until a local engine must have answered


def missing() -> list[str]:
    """A sentence for everything that compose.yaml needs and this machine lacks."""
    if shutil.which("docker") is None:
        return ["Docker is not installed."]
    if not _succeeds("docker", "info", "--format", "{{.ServerVersion}}"):
        return ["No Docker engine answers."]
    if not _succeeds("docker", "compose", "version"):
        return ["Docker lacks its compose plugin: https://docs.docker.com/compose/install/."]
    return []


def command(*arguments: str) -> list[str]:
    """The argv of `docker compose` for this project; `.env` fills in what the file leaves open."""
    env_file = ROOT / ".env"
    options = ["--env-file", str(env_file)] if env_file.is_file() else []
    return ["docker", "compose", *options, "--file", str(FILE), *arguments]


def has_containers() -> bool:
    """Whether any container of this project exists, running or not."""
    listed = subprocess.run(command("ps", "--all", "--quiet"), capture_output=True, check=False)
    return listed.returncode == 0 and bool(listed.stdout.strip())


def become(*arguments: str) -> NoReturn:
    """Let `docker compose` take this process's place, so that Ctrl-C is its own."""
    argv = command(*arguments)
    os.execvp(argv[0], argv)


def _succeeds(*argv: str) -> bool:
    try:
        return (
            subprocess.run(argv, capture_output=True, timeout=PATIENCE, check=False).returncode == 0
        )
    except (subprocess.TimeoutExpired, OSError):
        return False
