"""Check names and references of the whole tree: `python -m terraform.tools.check [FOLDER]`."""

import sys
from pathlib import Path

from terraform.tools import provider_names, references
from terraform.tools.tree import TERRAFORM, load


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else TERRAFORM
    modules = load(root)
    found = [*provider_names.problems(modules), *references.problems(modules)]
    if found or not modules:
        raise SystemExit("\n".join(found) or f"There is no Terraform in {root}")
    blocks = sum(len(module.blocks) for module in modules)
    print(
        f"Terraform: {blocks} blocks in {len(modules)} modules, every name and reference is known"
    )


if __name__ == "__main__":
    main()
