"""Finds the Docker engine of this machine, and runs `docker compose` with compose.yaml."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from core.settings import DEFAULT_BUNDLE, Settings

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "compose" / "compose.yaml"
BUNDLES = ROOT / "bundles"  # containers mount it, so MODEL_URI can be a folder below it
MOUNTS = BUNDLES / ".compose.json"  # a compose file that mounts other folders
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


def write_mounts(settings: Settings) -> list[Path]:
    """Write a compose file that mounts the local model bundles of the settings, if any need it.

    The containers get them, read-only, at their paths on this machine. `compose.yaml` mounts the
    folder `bundles`, and the image of the worker has the default bundle.
    """
    folders = {uri: (ROOT / uri).resolve() for uri in settings.model_uris if "://" not in uri}
    mounted = {
        uri: str(folder)
        for uri, folder in folders.items()
        if folder.is_dir()
        and folder != DEFAULT_BUNDLE.resolve()
        and not folder.is_relative_to(BUNDLES.resolve())
    }

    if not mounted:
        return []

    def paths(uris: Iterable[str]) -> str:
        return ",".join(mounted.get(uri, uri) for uri in uris)

    environment = {}
    if settings.model_uri in mounted:
        environment["MODEL_URI"] = mounted[settings.model_uri]
    if not mounted.keys().isdisjoint(settings.extra_model_uris):
        environment["EXTRA_MODEL_URIS"] = paths(settings.extra_model_uris)
    volumes = [
        {"type": "bind", "source": folder, "target": folder, "read_only": True}
        for folder in dict.fromkeys(mounted.values())
    ]
    service = {"environment": environment, "volumes": volumes}
    MOUNTS.write_text(json.dumps({"services": {"api": service, "worker": service}}, indent=2))
    return [MOUNTS]


def command(*arguments: str, more: Iterable[Path] = ()) -> list[str]:
    """The command line of `docker compose` for this project, with the settings of `.env`.

    `more` are further compose files.
    """
    env_file = ROOT / ".env"
    options = ["--env-file", str(env_file)] if env_file.is_file() else []
    files = [argument for file in (FILE, *more) for argument in ("--file", str(file))]
    return ["docker", "compose", *options, *files, *arguments]


def has_containers() -> bool:
    """Whether this project has containers, running or stopped."""
    listed = subprocess.run(command("ps", "--all", "--quiet"), capture_output=True, check=False)
    return listed.returncode == 0 and bool(listed.stdout.strip())


def replace_process(*arguments: str, more: Iterable[Path] = ()) -> NoReturn:
    """Replace this process by `docker compose`, which then receives Ctrl-C."""
    argv = command(*arguments, more=more)
    os.execvp(argv[0], argv)


def _succeeds(*argv: str) -> bool:
    try:
        return (
            subprocess.run(argv, capture_output=True, timeout=PROBE_SECONDS, check=False).returncode
            == 0
        )
    except (subprocess.TimeoutExpired, OSError):
        return False
