"""Write `provider_names.json` again: `python -m terraform.tools.provider_source FOLDER`.

FOLDER is `package/` of the npm package @cdktf/provider-google, whose generated code carries the
provider's schema; it is the last one there will be, for provider 6.50:

    npm pack @cdktf/provider-google@16.12.1 && tar xzf cdktf-provider-google-16.12.1.tgz

Only the types that the tree uses are kept. `provider_changes.json`, written by hand, holds what
provider 7 changed in them.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from terraform.tools.provider_names import NAMES
from terraform.tools.tree import TERRAFORM, load

CHANGES = TERRAFORM / "tools" / "provider_changes.json"
_STRUCT = re.compile(r"^function (\w+)ToHclTerraform\(struct\) \{\n(.*?)^\}", re.S | re.M)
_TOP = re.compile(r"synthesizeHclAttributes\(\) \{\n\s+const attrs = \{\n(.*?)\n        \};", re.S)
_ENTRY = re.compile(r'^\s+"?(\w+)"?: \{\n\s+value: (.*?),\n\s+isBlock: (true|false)', re.M)
_INTERFACE = re.compile(r"^export interface (\w+)(?: extends [\w.]+)? \{\n(.*?)^\}", re.S | re.M)
_PROPERTY = re.compile(r"^    readonly (\w+)(\??):", re.M)
_COMPUTED = re.compile(r"Attribute\('(\w+)'\)|\(this, \"(\w+)\"")


def used() -> list[tuple[str, str]]:
    """(kind, type) of every block of Google's provider in the tree."""
    return sorted(
        {
            (block.kind, block.labels[0])
            for module in load()
            for block in module.blocks
            if block.kind in ("resource", "data") and block.labels[0].startswith("google_")
        }
    )


def schema(package: Path, kind: str, type_: str) -> dict[str, Any]:
    """Names of one type: arguments, blocks, and everything that can be read."""
    folder = type_.removeprefix("google_").replace("_", "-")
    source = package / "lib" / (f"data-google-{folder}" if kind == "data" else folder)
    code = (source / "index.js").read_text(encoding="utf-8")
    types = (source / "index.d.ts").read_text(encoding="utf-8")
    interfaces = {name: dict(_PROPERTY.findall(body)) for name, body in _INTERFACE.findall(types)}
    structs = dict(_STRUCT.findall(code))
    top = _TOP.search(code)
    config = re.search(r"interface (\w+) extends cdktf\.TerraformMetaArguments", types)
    assert top is not None and config is not None, f"{source} is not as this reads it"
    names = _level(top[1], interfaces[config[1]], structs, interfaces)
    own = code[code.rindex("extends cdktf.Terraform") :]
    read = {attribute or block for attribute, block in _COMPUTED.findall(own)}
    names["computed"] = sorted(read - {*names["required"], *names["optional"], *names["blocks"]})
    return names


def _level(
    entries: str,
    properties: dict[str, str],
    structs: dict[str, str],
    interfaces: dict[str, dict[str, str]],
) -> dict[str, Any]:
    required: list[str] = []
    optional: list[str] = []
    blocks: dict[str, Any] = {}
    for name, value, is_block in _ENTRY.findall(entries):
        camel = re.sub(r"_(\w)", lambda match: match[1].upper(), name)
        needed = properties.get(camel) == ""
        if is_block == "false":
            (required if needed else optional).append(name)
        elif name != "timeouts":
            struct = re.findall(r"(\w+)ToHclTerraform", value)[-1]
            inner = _level(
                structs[struct], interfaces[struct[0].upper() + struct[1:]], structs, interfaces
            )
            blocks[name] = {"needed": needed, **inner}
    return {"required": required, "optional": optional, "blocks": blocks}


def merged(names: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`names` with what `changes` adds to it, at any depth."""
    for key, value in changes.items():
        if isinstance(value, dict):
            names[key] = merged(names.get(key, {}), value)
        else:
            names[key] = sorted({*names.get(key, ()), *value})
    return names


def _lines(document: dict[str, Any]) -> str:
    """JSON with a line for each type, so that a difference can be read."""
    parts = [f' "{key}": {json.dumps(document[key])}' for key in ("source", "changed_by")]
    for kind in ("resource", "data", "ephemeral"):
        types = [
            f'  "{type_}": {json.dumps(names, sort_keys=True)}'
            for type_, names in sorted(document[kind].items())
        ]
        parts.append(f' "{kind}": {{\n' + ",\n".join(types) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("package", type=Path)
    package: Path = parser.parse_args().package
    about = json.loads((package / "package.json").read_text(encoding="utf-8"))
    changes = json.loads(CHANGES.read_text(encoding="utf-8"))
    found: dict[str, Any] = {"resource": {}, "data": {}, "ephemeral": {}}
    for kind, type_ in used():
        found[kind][type_] = schema(package, kind, type_)
    document = {
        "source": f"npm {about['name']} {about['version']}, provider hashicorp/google 6.50.0",
        "changed_by": CHANGES.name,
        **merged(found, changes["names"]),
    }
    NAMES.write_text(_lines(document), encoding="utf-8")
    print(f"{sum(len(found[kind]) for kind in found)} types in {NAMES}")


if __name__ == "__main__":
    main()
