"""The generators and linters, by version. Each comes from its registry and stays in a folder.

A tool that cannot be installed is reported by name, and what needs it is skipped.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

GENERATOR = "org.openapitools:openapi-generator-cli:7.25.0"
OAPI_CODEGEN = "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2"
PYTHON_CLIENT = "openapi-python-client==0.29.1"
NPM = (
    *("@hey-api/openapi-ts@0.99.0", "@redocly/cli@2.41.0", "@stoplight/spectral-cli@6.16.3"),
    *("@types/node@20.19.0", "openapi-fetch@0.17.0", "openapi-typescript@7.13.0", "orval@8.38.0"),
    "typescript@5.9.3",
)


class Missing(Exception):
    """A tool that this machine does not have, and that cannot be installed here."""


class Failed(Exception):
    """A command that exits with an error. The text is the end of its output."""


def run(*command: str | Path, folder: Path | None = None, **environment: str) -> str:
    """Run a command and return its output. Raises Failed, and Missing for an unknown program."""
    program = str(command[0])
    if shutil.which(program) is None:
        raise Missing(program)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line or "error" in line] or lines
        raise Failed("\n".join([f"$ {' '.join(map(str, command))}", *errors[:15]]))
    return done.stdout


@dataclass
class Tools:
    """The tools in `folder`. Each is installed when it is first used."""

    folder: Path

    @cached_property
    def generator(self) -> Path:
        """The jar of openapi-generator, from Maven Central."""
        _, name, version = GENERATOR.split(":")
        jar = self.folder / f"{name}-{version}.jar"
        if not jar.exists():
            where = f"-DoutputDirectory={self.folder}"
            self._install("mvn", "-q", "-B", "dependency:copy", f"-Dartifact={GENERATOR}", where)
        return jar

    @cached_property
    def oapi_codegen(self) -> Path:
        program = self.folder / "bin" / OAPI_CODEGEN.rpartition("@")[2] / "oapi-codegen"
        if not program.exists():
            self._install("go", "install", OAPI_CODEGEN, GOBIN=str(program.parent))
        return program

    @cached_property
    def python_client(self) -> Path:
        program = self.folder / PYTHON_CLIENT.replace("==", "-") / "bin" / "openapi-python-client"
        if not program.exists():
            self._install(sys.executable, "-m", "venv", program.parents[1])
            pip = program.with_name("pip")
            self._install(pip, "install", "--quiet", PYTHON_CLIENT)
        return program

    @cached_property
    def npm(self) -> Path:
        """The folder with the programs of npm packages."""
        node = self.folder / "node"
        stamp = node / "packages.txt"
        if not stamp.exists() or stamp.read_text() != "\n".join(NPM):
            node.mkdir(parents=True, exist_ok=True)
            (node / "package.json").write_text('{"private": true, "type": "module"}')
            self._install("npm", "install", "--silent", "--no-audit", *NPM, folder=node)
            stamp.write_text("\n".join(NPM))
        return node / "node_modules" / ".bin"

    def _install(
        self, *command: str | Path, folder: Path | None = None, **environment: str
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            run(*command, folder=folder, **environment)
        except Failed as failed:
            raise Missing(f"cannot be installed: {failed}") from None
