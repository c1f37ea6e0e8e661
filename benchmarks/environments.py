"""The frameworks' own environments: one virtual environment each, made when first needed."""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements"
VENVS = HERE / ".venvs"


def environment(framework: str) -> Path:
    """The `bin` folder of `framework`'s environment, installed if it is not, or not by these pins.

    Raises SystemExit where pip cannot.
    """
    folder = VENVS / framework
    complete = folder / ".complete"
    wanted = fingerprint(framework)
    if not (complete.exists() and complete.read_text() == wanted):
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(folder / "bin" / "pip"), "--quiet", "--disable-pip-version-check"]
        requirements = str(REQUIREMENTS / f"{framework}.txt")
        # All is pinned, so there is nothing to resolve; `check` says if a package was forgotten.
        for step in (["install", "--no-deps", "--requirement", requirements], ["check"]):
            if subprocess.run([*pip, *step], check=False).returncode:
                raise SystemExit(f"The environment of {framework} could not be installed.")
        complete.write_text(wanted)
    return folder / "bin"


def pins(framework: str) -> list[str]:
    """The requirement lines of a framework, those of the files it includes first."""
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
