"""Every resource's arguments and blocks against the provider's names: `provider_names.json`."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from terraform.tools.tree import Block, Module, attributes, nested

NAMES = Path(__file__).with_name("provider_names.json")
KINDS = ("resource", "data", "ephemeral")
# What Terraform itself understands in each of them.
META_ARGUMENTS = {"count", "for_each", "provider", "depends_on"}
META_BLOCKS = {"lifecycle", "timeouts", "connection", "provisioner"}


@cache
def names() -> dict[str, dict[str, Any]]:
    document: dict[str, dict[str, Any]] = json.loads(NAMES.read_text(encoding="utf-8"))
    return document


def readable(kind: str, type_: str) -> set[str]:
    """What an expression may read of a type."""
    known = names()[kind].get(type_, {})
    groups = ("required", "optional", "blocks", "computed")
    return {"id", *(name for group in groups for name in known.get(group, ()))}


def problems(modules: list[Module]) -> Iterator[str]:
    """One line for each name that the provider does not have, and for each one that it demands."""
    for module in modules:
        for block in module.blocks:
            if block.kind in KINDS and not block.labels[0].startswith("terraform_"):
                where = f"{module.folder.name}/{block.file.name}: {block.name}"
                yield from (f"{where}{problem}" for problem in _of_type(block))


def _of_type(block: Block) -> Iterator[str]:
    known = names()[block.kind].get(block.labels[0])
    if known is None:
        yield f": no {block.kind} {block.labels[0]} in provider_names.json"
        return
    body = {key: value for key, value in block.body.items() if key not in META_ARGUMENTS}
    yield from _level("", body, known, META_BLOCKS)


def _level(
    path: str, body: dict[str, Any], known: dict[str, Any], others: set[str]
) -> Iterator[str]:
    given, arguments = attributes(body), {*known["required"], *known["optional"]}
    for name in given:
        if name in known["blocks"]:
            yield f"{path}.{name}: is a block, not an argument"
        elif name not in arguments:
            yield f"{path}.{name}: no such argument"
    for name in known["required"]:
        if name not in given:
            yield f"{path}.{name}: required, and not given"
    seen = set()
    for name, inner in nested(body):
        seen.add(name)
        if name in known["blocks"]:
            yield from _level(f"{path}.{name}", inner, known["blocks"][name], set())
        elif name in arguments:
            yield f"{path}.{name}: is an argument, not a block"
        elif name not in others:
            yield f"{path}.{name}: no such block"
    for name, block in known["blocks"].items():
        if block["needed"] and name not in seen:
            yield f"{path}.{name}: required block, and not given"
