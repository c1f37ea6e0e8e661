"""`models/requirements-export.txt` names every package that the export tools import."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = (
    "models.import_efficientnet_lite",
    "models.export_huggingface",
    "models.export_zero_shot",
)
OWN = ("core", "models", "worker")
PACKAGES = {"PIL": "pillow"}  # by the name under which a package is imported
DEPENDENCIES = {"huggingface_hub": "transformers"}  # these come with a package of the list
OPTIONAL = {"pillow_heif"}  # imported where it is used, and only if it is installed


def test_requirements_name_every_imported_package() -> None:
    names = {
        DEPENDENCIES.get(name, PACKAGES.get(name, name).replace("_", "-"))
        for name in _third_party(TOOLS) - OPTIONAL
    }
    text = (ROOT / "models/requirements-export.txt").read_text("utf-8")
    listed = set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))
    assert {"torch", "numpy"} <= names
    assert names <= listed, names - listed


def _third_party(modules: tuple[str, ...]) -> set[str]:
    """The packages that these modules import, directly or through modules of this project."""
    found: set[str] = set()
    pending, seen = list(modules), set[Path]()
    while pending:
        for file in _files(pending.pop()):
            if file in seen:
                continue
            seen.add(file)
            for name in _imports(file):
                package = name.partition(".")[0]
                if package in OWN:
                    pending.append(name)
                elif package not in sys.stdlib_module_names:
                    found.add(package)
    return found


def _files(module: str) -> Iterator[Path]:
    """The files that an import of `module` runs; `module` may also name a member of a module."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        path = ROOT.joinpath(*parts[:count])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                yield file


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{each.name}" for each in node.names)
