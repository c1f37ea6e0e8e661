"""Terraform for tests: a copy of the tree to work in, and the binary."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from terraform.tools.tree import TERRAFORM
from tests.support.requirements import TERRAFORM as TERRAFORM_BINARY


def copy_of_tree(folder: Path) -> Path:
    """A copy of the Terraform tree that a test may change, without Terraform's own files."""
    ignored = shutil.ignore_patterns(".terraform", "__pycache__", "*.tfstate*")
    return Path(shutil.copytree(TERRAFORM, folder / "terraform", ignore=ignored))


def terraform_binary() -> str:
    """The path of Terraform. Skips the test without it."""
    return shutil.which("terraform") or TERRAFORM_BINARY.absent()


def terraform(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Terraform in `folder`. Skips the test without the binary."""
    binary = terraform_binary()
    # Tests do not use a developer's configuration or a provider in development.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TF_")
    } | {"TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}
    return subprocess.run(
        [binary, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def outputs(folder: Path, configuration: str) -> dict[str, Any]:
    """The outputs of a root module without providers, after apply."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.tf").write_text(configuration, encoding="utf-8")
    for arguments in (("init",), ("apply", "-auto-approve")):
        done = terraform(folder, *arguments, "-no-color", "-input=false")
        assert done.returncode == 0, done.stdout + done.stderr
    shown = terraform(folder, "output", "-json")
    assert shown.returncode == 0, shown.stderr
    return {name: each["value"] for name, each in json.loads(shown.stdout).items()}
