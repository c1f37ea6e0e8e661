"""Write each module's variables and outputs into its README: `python -m terraform.tools.tables`.

They come from the `.tf` files, so a README cannot name what does not exist.
"""

import json
import re
from pathlib import Path
from typing import Any

from terraform.tools.tree import Module, load, plain

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def tables(module: Module) -> str:
    """The Markdown of one module's variables and outputs."""
    lines: list[str] = []
    variables, outputs = module.of("variable"), module.of("output")
    if variables:
        lines += ["| variable | type | default | meaning |", "|---|---|---|---|"]
        lines += [_row(name, block.body) for name, block in sorted(variables.items())]
    if outputs:
        lines += [""] if lines else []
        lines += ["| output | meaning |", "|---|---|"]
        lines += [
            f"| `{name}` | {_cell(plain(block.body['description']))} |"
            for name, block in sorted(outputs.items())
        ]
    return "\n".join(lines)


def readme_with_tables(readme: str, module: Module) -> str:
    """`readme` with the tables between its two markers."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{tables(module)}\n{END}", readme)


def readme_of(module: Module) -> Path:
    return module.folder / "README.md"


def _row(name: str, body: dict[str, Any]) -> str:
    type_ = re.sub(r"^\$\{(.*)\}$", r"\1", str(body["type"]), flags=re.DOTALL)
    type_ = re.sub(r"\s+", " ", type_)
    default = f"`{_default(body['default'])}`" if "default" in body else "(required)"
    return f"| `{name}` | `{_cell(type_)}` | {default} | {_cell(plain(body['description']))} |"


def _default(value: Any) -> str:
    return _cell(value) if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    for module in load():
        readme = readme_of(module)
        readme.write_text(readme_with_tables(readme.read_text("utf-8"), module), encoding="utf-8")


if __name__ == "__main__":
    main()
