"""Tests of the workflows: scripts on a bare machine, Terraform's checks, and uploaded files."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.images import admitted, stages
from tests.support.requirements import GIT, TERRAFORM
from tests.support.stack import ROOT


@pytest.mark.parametrize("module", ["deploy.release", "deploy.smoke"])
def test_module_that_runs_before_the_installation_needs_no_package(module: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


GOOD = 'variable "name" {\n  type = string\n}\n\noutput "name" {\n  value = upper(var.name)\n}\n'


TEST = 'variables {\n  name = "a"\n}\n\nrun "it" {\n  assert {\n    condition     = output.name == "A"\n    error_message = "not in capitals"\n  }\n}\n'  # noqa: E501


def run_terraform(root: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("terraform") is None:
        TERRAFORM.absent()
    return subprocess.run(
        [ROOT / ".ci/terraform", root], capture_output=True, text=True, check=False, timeout=100
    )


@pytest.fixture
def terraform(tmp_path: Path) -> Path:
    module = tmp_path / "modules" / "names"
    (module / "tests").mkdir(parents=True)
    (tmp_path / "envs" / "example").mkdir(parents=True)
    (module / "main.tf").write_text(GOOD)
    (module / "tests" / "names.tftest.hcl").write_text(TEST)
    (tmp_path / "envs/example/main.tf").write_text(
        'module "names" {\n  source = "../../modules/names"\n  name   = "a"\n}\n'
    )
    return tmp_path


def test_terraform_is_validated_and_tested(terraform: Path) -> None:
    done = run_terraform(terraform)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "== envs/example/" in done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize(
    ("file", "wrong"),
    [
        ("modules/names/main.tf", GOOD.replace("  type =", "     type=")),
        ("modules/names/main.tf", GOOD.replace("upper", "lower")),
        ("envs/example/main.tf", 'module "names" {\n  source = "../../modules/names"\n}\n'),
    ],
    ids=["format", "test", "missing variable"],
)
def test_invalid_terraform_is_refused(terraform: Path, file: str, wrong: str) -> None:
    (terraform / file).write_text(wrong)
    assert run_terraform(terraform).returncode != 0


def test_terraform_leaves_the_checkout_unchanged(terraform: Path) -> None:
    before = {path: path.is_dir() or path.read_bytes() for path in terraform.rglob("*")}
    assert run_terraform(terraform).returncode == 0
    assert {path: path.is_dir() or path.read_bytes() for path in terraform.rglob("*")} == before


def test_a_lock_file_that_init_replaces_is_refused(terraform: Path) -> None:
    """Here init removes a provider that nothing needs, as it would replace another version."""
    lock = terraform / "envs/example/.terraform.lock.hcl"
    lock.write_text(
        'provider "registry.terraform.io/hashicorp/time" {\n  version = "0.13.1"\n'
        '  hashes = [\n    "zh:' + "0" * 64 + '",\n  ]\n}\n'
    )
    done = run_terraform(terraform)
    assert done.returncode == 1
    assert "a provider is not the one that the lock file names" in done.stderr


# --- .gcloudignore -------------------------------------------------------------------------------
SECRETS = (
    *(".env", ".data/records.db", ".venv/bin/python", ".git/config", "gha-creds-12.json"),
    *("key.json", "terraform/envs/example/terraform.tfvars", "bundles/x/model.onnx"),
    *("core/__pycache__/a.cpython-311.pyc", "models/runs/last.pt", "compose/.env"),
)


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of this repository, and some secrets, that .gcloudignore does not exclude.

    https://cloud.google.com/sdk/gcloud/reference/topic/gcloudignore: the syntax is gitignore's.
    """
    if shutil.which("git") is None:
        GIT.absent()
    folder = tmp_path_factory.mktemp("upload")
    tops = ["app", "worker", "core", "models", "compose", "tests", "docs", ".github", ".ci"]
    files = [f for top in tops for f in (ROOT / top).rglob("*") if f.is_file()]
    files += [f for f in ROOT.iterdir() if f.is_file()]
    names = {str(f.relative_to(ROOT)) for f in files} - {".git", ".gitignore"}
    for name in names | set(SECRETS):
        if not name.startswith(".git/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    (folder / ".gitignore").write_text((ROOT / ".gcloudignore").read_text())

    def git(*words: str) -> str:
        command = ["git", "-c", "core.excludesFile=", *words]
        return subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True
        ).stdout

    git("init", "--quiet")
    return set(git("ls-files", "--others", "--exclude-standard").splitlines())


def test_uploads_hold_what_the_services_are_built_from(uploaded: set[str]) -> None:
    assert "compose/Dockerfile" in uploaded
    for name in ("lock", "api", "worker", "runtime"):
        for copy in stages()[name].copies:
            for source in copy.sources if copy.from_stage is None else ():
                assert any(f == source or f.startswith(f"{source}/") for f in uploaded), source


def test_uploads_hold_no_secret_and_nothing_that_a_build_would_not_take(
    uploaded: set[str],
) -> None:
    assert not uploaded & set(SECRETS)
    assert {name for name in uploaded if not admitted(name)} == set()
    assert not {n for n in uploaded if n.startswith(("tests/", "docs/", ".github/", ".ci/"))}
