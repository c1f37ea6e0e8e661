"""A virtual environment for each framework, created when it is first needed."""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements"
VENVS = HERE / ".venvs"


def environment(framework: str) -> Path:
    """The `bin` folder of `framework`'s environment. Installs it if its pins differ.

    Raises SystemExit if pip fails.
    """
    folder = VENVS / framework
    complete = folder / ".complete"
    wanted = fingerprint(framework)
    if not (complete.exists() and complete.read_text() == wanted):
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(folder / "bin" / "pip"), "--quiet", "--disable-pip-version-check"]
        requirements = str(REQUIREMENTS / f"{framework}.txt")
        # Every package is pinned, so pip resolves nothing. `pip check` finds a missing package.
        for step in (["install", "--no-deps", "--requirement", requirements], ["check"]):
            if subprocess.run([*pip, *step], check=False).returncode:
                raise SystemExit(f"The environment of {framework} could not be installed.")
        complete.write_text(wanted)
    return folder / "bin"


def pins(framework: str) -> list[str]:
    """The requirement lines of a framework. Those of included files come first."""
    lines: list[str] = []
    for line in (REQUIREMENTS / f"{framework}.txt").read_text().splitlines():
        if line.startswith("-r "):
            lines += pins(line.removeprefix("-r ").removesuffix(".txt"))
        elif line and not line.startswith("#"):
            lines.append(line)
    return lines


def fingerprint(framework: str) -> str:
    """Changes with the pins and with Python."""
    return hashlib.sha256("\n".join([sys.version, *pins(framework)]).encode()).hexdigest()
