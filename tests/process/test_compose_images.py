"""The build context of the images, compared with the files that git tracks."""

import shutil
import subprocess

from tests.support.images import admitted
from tests.support.requirements import GIT
from tests.support.stack import ROOT


def test_build_context_has_the_tracked_files() -> None:
    """It excludes secrets, data, and environments, and includes everything that tests read."""
    for path in (
        ".env", ".data/records.db", ".venv/bin/python", ".git/config", "bundles/x/model.onnx",
        "runs/1/last.pt", "core/__pycache__/a.cpython-311.pyc", "key.json", "app.log",
        "terraform/envs/example/terraform.tfvars", "terraform/envs/example/terraform.tfstate",
        "terraform/envs/example/.terraform/providers/x",
    ):  # fmt: skip
        assert not admitted(path), path
    if shutil.which("git") is None:
        GIT.absent()
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        GIT.absent()
    left_out = {path for path in listed.stdout.splitlines() if not admitted(path)}
    assert left_out <= {".pre-commit-config.yaml", ".dockerignore"}, left_out
