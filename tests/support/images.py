"""`compose/Dockerfile`, `.dockerignore` and `compose.yaml` as data, without Docker.

Supports the instructions that these files use, and fails on others. `unpack` copies the files of a
stage as a build does, so that a test can run the command of an image with exactly its files.
"""

import functools
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from tests.support.stack import ROOT

DOCKERFILE = ROOT / "compose" / "Dockerfile"
COMPOSE = ROOT / "compose" / "compose.yaml"
IGNORE = ROOT / ".dockerignore"
_KNOWN = {
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE"),
    *("HEALTHCHECK", "RUN", "USER", "WORKDIR"),
}


@dataclass(frozen=True)
class Copy:
    sources: tuple[str, ...]
    target: str
    from_stage: str | None


@dataclass
class Stage:
    """One `FROM … AS name`, with its own and its inherited instructions, in order."""

    name: str
    parent: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        return [text for word, text in self.instructions if word == keyword]

    def last(self, keyword: str) -> str:
        return self.all(keyword)[-1]

    @property
    def command(self) -> list[str]:
        return exec_form(self.last("CMD"))

    @property
    def health_command(self) -> list[str]:
        return exec_form(self.last("HEALTHCHECK").partition("CMD ")[2])

    @property
    def environment(self) -> dict[str, str]:
        pairs = (pair.partition("=") for text in self.all("ENV") for pair in text.split())
        return {name: value for name, _, value in pairs}

    @property
    def copies(self) -> list[Copy]:
        found = []
        for text in self.all("COPY"):
            words = text.split()
            options = [word for word in words if word.startswith("--")]
            *sources, target = [word for word in words if not word.startswith("--")]
            origin = [o.removeprefix("--from=") for o in options if o.startswith("--from=")]
            found.append(Copy(tuple(sources), target, origin[0] if origin else None))
        return found


def exec_form(text: str) -> list[str]:
    """The argv of `["a", "b"]`. Raises ValueError for the shell form."""
    argv = json.loads(text)
    if not isinstance(argv, list):
        raise ValueError(f"not the exec form: {text}")
    return [str(word) for word in argv]


def stages() -> dict[str, Stage]:
    """Every stage by its name."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "FROM":
            parent, _, name = rest.partition(" AS ")
            inherited = found[parent].instructions if parent in found else []
            current = found[name] = Stage(name, parent, list(inherited))
        elif keyword:
            assert keyword in _KNOWN, f"tests/support/images.py does not know {keyword}"
            if current is not None:
                current.instructions.append((keyword, rest.strip()))
    return found


def services() -> dict[str, dict[str, Any]]:
    """The services of compose.yaml, anchors resolved."""
    return dict(yaml.safe_load(COMPOSE.read_text())["services"])


def admitted(path: str) -> bool:
    """Whether .dockerignore lets this file, relative to the repository, into a build.

    https://docs.docker.com/build/concepts/context/#dockerignore-files: the last matching line
    decides, and a pattern that matches a folder matches what is in it.
    """
    kept = True
    parts = [path, *map(str, PurePosixPath(path).parents)]
    for pattern, admits in _rules():
        if any(pattern.fullmatch(part) for part in parts):
            kept = admits
    return kept


@functools.cache
def _rules() -> list[tuple[re.Pattern[str], bool]]:
    """The patterns of .dockerignore, and whether each one admits what it matches."""
    return [(_pattern(rule.removeprefix("!")), rule.startswith("!")) for rule in _lines()]


@functools.cache
def _lines() -> list[str]:
    """The lines of .dockerignore that are rules."""
    lines = (line.strip() for line in IGNORE.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def unpack(stage: Stage, folder: Path) -> Path:
    """Copy the files of a stage as a build does. Returns the working directory."""
    work = folder / stage.last("WORKDIR").lstrip("/")
    for copy in stage.copies:
        if copy.from_stage is not None:
            continue
        for source in copy.sources:
            _copy(source, work / copy.target, len(copy.sources) > 1 or copy.target.endswith("/"))
    return work


def _copy(source: str, target: Path, into_folder: bool) -> None:
    origin = ROOT / source
    files = [origin] if origin.is_file() else list(_files(origin))
    files = [file for file in files if admitted(str(file.relative_to(ROOT)))]
    assert files, f"COPY {source}: nothing there, or nothing that .dockerignore admits"
    for file in files:
        if origin.is_dir():
            place = target / file.relative_to(origin)
        else:
            place = target / file.name if into_folder or target.is_dir() else target
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, place)


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder, without those of folders that .dockerignore excludes.

    Excluded are environments and caches, which have tens of thousands of files.
    """
    for place, folders, names in os.walk(folder):
        inside = PurePosixPath(Path(place).relative_to(ROOT).as_posix())
        folders[:] = [name for name in folders if _may_have_admitted(str(inside / name))]
        yield from (Path(place, name) for name in names)


def _may_have_admitted(folder: str) -> bool:
    """Whether .dockerignore admits a folder, or a path in it by a rule of its own."""
    return admitted(folder) or any(rule.startswith((f"!{folder}/", "!**")) for rule in _lines())


def _pattern(rule: str) -> re.Pattern[str]:
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", rule.rstrip("/"))
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(known.get(p, p if p.startswith("[") else re.escape(p)) for p in pieces)
    )
