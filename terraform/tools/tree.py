"""The `.tf` files of a folder tree as modules of blocks, with the references in their expressions.

Values are python-hcl2's: an expression is a string `${...}`, a quoted string keeps its quotes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import hcl2

TERRAFORM = Path(__file__).resolve().parents[1]
_NOTES = {"__is_block__", "__comments__", "__inline_comments__", "__start_line__", "__end_line__"}
# `var.x`, `module.x.y`, `data.t.n.a`, `google_t.n.a`: the root, then names and what indexes them.
_REFERENCE = re.compile(
    r"(?<![\w.\-])(var|local|module|each|data|ephemeral|(?:google|random|terraform|time)_\w+)"
    r"((?:(?:\[[^\[\]]*\])*\.[\w*]+)+|(?=\[))"
)
_PART = re.compile(r"\.([\w*]+)")


@dataclass(frozen=True)
class Reference:
    """What an expression names: ("module", "queue", "topic"). Indexes are left out."""

    parts: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.parts)


@dataclass(frozen=True)
class Block:
    """One block: `resource "a" "b" {}` has the kind `resource` and the labels `("a", "b")`."""

    kind: str
    labels: tuple[str, ...]
    body: dict[str, Any]
    file: Path

    @property
    def name(self) -> str:
        return ".".join((self.kind, *self.labels))

    def references(self) -> Iterator[Reference]:
        for key, value in self.body.items():
            if key not in _NOTES:
                yield from references_in(value)


@dataclass
class Module:
    """The blocks of one folder."""

    folder: Path
    blocks: list[Block] = field(default_factory=list)

    def of(self, kind: str) -> dict[str, Block]:
        """Blocks of one kind by their labels, joined with a dot."""
        return {".".join(block.labels): block for block in self.blocks if block.kind == kind}

    @property
    def locals(self) -> dict[str, Any]:
        """Every local value's expression."""
        return {
            name: value
            for block in self.blocks
            if block.kind == "locals"
            for name, value in block.body.items()
            if name not in _NOTES
        }

    @property
    def providers(self) -> set[str]:
        """Names of the providers it needs."""
        required = [
            nested
            for block in self.blocks
            if block.kind == "terraform"
            for nested in block.body.get("required_providers", [])
        ]
        return {name for nested in required for name in nested} - _NOTES


def load(root: Path = TERRAFORM) -> list[Module]:
    """Every module under `root`, in the order of their paths."""
    return [load_module(folder) for folder in folders(root)]


def folders(root: Path = TERRAFORM) -> list[Path]:
    """The folder of every module under `root`, sorted."""
    return sorted({file.parent for file in root.rglob("*.tf") if ".terraform" not in file.parts})


def load_module(folder: Path) -> Module:
    """The blocks of `folder`'s files. Raises hcl2's error for a file that is not HCL."""
    module = Module(folder.resolve())
    for file in sorted(folder.glob("*.tf")):
        for kind, found in _document(file.read_text(encoding="utf-8")).items():
            if kind not in _NOTES:
                for each in found:
                    module.blocks.extend(_blocks(kind, (), each, file))
    return module


@lru_cache(maxsize=512)
def _document(text: str) -> dict[str, Any]:
    """Parsed once for the same text, because parsing takes most of a check's time. Read-only."""
    return dict(hcl2.loads(text))


def _blocks(kind: str, labels: tuple[str, ...], body: Any, file: Path) -> Iterator[Block]:
    if body.get("__is_block__"):
        yield Block(kind, labels, body, file)
        return
    for label, inner in body.items():
        if label not in _NOTES:
            yield from _blocks(kind, (*labels, plain(label)), inner, file)


def plain(text: Any) -> Any:
    """A quoted string without its quotes; anything else as it is."""
    if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1].replace('\\"', '"')
    return text


def attributes(body: dict[str, Any]) -> dict[str, Any]:
    """What `body` assigns with `=`."""
    return {key: value for key, value in body.items() if key not in _NOTES and not is_block(value)}


def nested(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The blocks in `body` with their names; a dynamic block appears as what it makes."""
    for key, value in body.items():
        if not is_block(value):
            continue
        for each in value:
            if key != "dynamic":
                yield key, each
                continue
            for label, dynamic in each.items():
                if label not in _NOTES:
                    for content in dynamic.get("content", []):
                        yield plain(label), content


def is_block(value: Any) -> bool:
    """Whether a value is a list of blocks, labelled ones included."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(each, dict)
            and (
                each.get("__is_block__")
                or any(isinstance(x, dict) and x.get("__is_block__") for x in each.values())
            )
            for each in value
        )
    )


def references_in(value: Any) -> Iterator[Reference]:
    """Every reference in a value, however deep."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in _NOTES:
                if key.startswith("("):
                    yield from _references(code(key))
                yield from references_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references_in(inner)
    elif isinstance(value, str):
        yield from _references(code(value))


def _references(text: str) -> Iterator[Reference]:
    for match in _REFERENCE.finditer(text):
        yield Reference((match[1], *_PART.findall(re.sub(r"\[[^\[\]]*\]", "", match[2]))))


def code(value: str) -> str:
    """The code in a value: literal text is blanked, what `${...}` holds inside it is not.

    Nested brackets' contents stay, so `a[local.b].c` names both.
    """
    pieces: list[str] = []
    inside: list[str] = []  # what is open: a string, or code with its depth of braces
    depths: list[int] = []
    index, quoted = 0, value.startswith('"')
    if not quoted:
        value = value[2:-1] if value.startswith("${") and value.endswith("}") else value
        inside.append("code")
        depths.append(0)
    while index < len(value):
        char = value[index]
        in_code = bool(inside) and inside[-1] == "code"
        if in_code and char == '"':
            inside.append("text")
            pieces.append('"')
        elif in_code and char == "}" and depths[-1] == 0 and len(inside) > 1:
            inside.pop()
            depths.pop()
            pieces.append(" ")
        elif in_code:
            depths[-1] += {"{": 1, "}": -1}.get(char, 0)
            pieces.append(char)
        elif char == "\\":
            index += 1
        elif char == '"':
            if inside:
                inside.pop()
            else:
                inside.append("text")
            pieces.append('"')
        elif value.startswith("$${", index) or value.startswith("%%{", index):
            index += 2
        elif value.startswith(("${", "%{"), index):
            inside.append("code")
            depths.append(0)
            pieces.append(" ")
            index += 1
        index += 1
    return "".join(pieces)
