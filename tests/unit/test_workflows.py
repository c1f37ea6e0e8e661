"""Rules for .github that its linters do not check, and its fit to this repository."""

import os
import re
import shlex
import tomllib
from importlib.util import find_spec
from typing import Any

import pytest
import yaml

from deploy import base_image
from deploy.release import argument_parser
from tests.support.images import DOCKERFILE, stages
from tests.support.stack import ROOT

WORKFLOWS = {path.name: path for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
# What is made of a repository's variables reaches GitHub as these, and nothing else does.
VARIABLES = {
    *("GCP_PROJECT", "GCP_REGION", "GCP_WORKLOAD_IDENTITY_PROVIDER", "GCP_DEPLOYER"),
    *("GCP_REGISTRY", "API_SERVICE", "WORKER_SERVICES", "API_URL"),
}


def workflow(name: str) -> dict[str, Any]:
    # YAML 1.1 reads the key `on` as true.
    document: dict[Any, Any] = yaml.safe_load(WORKFLOWS[name].read_text())
    return {("on" if key is True else key): value for key, value in document.items()}


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{n}:{job}", body) for n in WORKFLOWS for job, body in workflow(n)["jobs"].items()]


def steps() -> list[tuple[str, dict[str, Any]]]:
    return [(name, step) for name, job in jobs() for step in job.get("steps", [])]


def commands() -> list[tuple[str, str]]:
    return [(name, str(step["run"])) for name, step in steps() if "run" in step]


def deploy_steps() -> dict[str, dict[str, Any]]:
    mine = [step for name, step in steps() if name == "deploy.yml:deploy"]
    return {step["name"]: step for step in mine if "name" in step}


def test_actions_are_pinned_by_commit_and_say_which_version_that_is() -> None:
    pins: dict[str, set[str]] = {}
    for path in WORKFLOWS.values():
        for used in re.findall(r"^\s*(?:- )?uses: (.+)$", path.read_text(), re.MULTILINE):
            if used.startswith("./"):
                assert (ROOT / used.split()[0]).is_file()
                continue
            assert PINNED.fullmatch(used), used
            action, _, pin = used.partition("@")
            pins.setdefault(action, set()).add(pin)
    assert len(pins) >= 5
    assert {action: len(found) for action, found in pins.items() if len(found) > 1} == {}


@pytest.mark.parametrize(("name", "job"), jobs(), ids=lambda value: str(value)[:30])
def test_jobs_may_do_little_and_end(name: str, job: dict[str, Any]) -> None:
    extra = {"id-token": "write"} if name == "deploy.yml:deploy" else {}
    assert job["permissions"] == {"contents": "read", **extra}
    assert "uses" in job or 0 < job["timeout-minutes"] <= 60


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_grant_nothing_and_do_not_pile_up(name: str) -> None:
    assert workflow(name)["permissions"] == {}
    assert "github.ref" in workflow(name)["concurrency"]["group"]
    assert "pull_request_target" not in workflow(name)["on"]


def test_release_is_not_cancelled_by_the_next() -> None:
    assert workflow("deploy.yml")["concurrency"]["cancel-in-progress"] is False


def test_checkouts_leave_no_credentials_behind() -> None:
    checkouts = [step for _, step in steps() if "actions/checkout@" in step.get("uses", "")]
    assert len(checkouts) >= 5
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_nothing_from_outside_is_pasted_into_a_shell() -> None:
    for name, command in commands():
        assert "${{" not in command, name
        assert len(command.splitlines()) <= 3, f"{name}: a script can be tested, this cannot"


def test_commands_are_those_of_this_repository() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    seen = set()
    for name, command in commands():
        words = shlex.split(command)
        seen.add(words[0])
        match words:
            case ["make", target, *_]:
                assert target in targets, name
            case ["exec", "python3", "-m", module, *_] | ["python3", "-m", module, *_]:
                assert find_spec(module) is not None, name
            case [script, *_] if script.startswith(".ci/"):
                assert os.access(ROOT / script, os.X_OK), name
    assert {"make", "python3", ".ci/run"} <= seen
    assert {"releases", "terraform", "test-export"} <= {
        shlex.split(c)[1] for _, c in commands() if c.startswith("make ")
    }


def test_every_supported_python_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (oldest,) = re.findall(r">=(3\.\d+)", project["requires-python"])
    (shipped,) = re.findall(r"^ARG PYTHON_IMAGE=python:(3\.\d+)", DOCKERFILE.read_text(), re.M)
    test = workflow("ci.yml")["jobs"]["test"]
    assert {oldest, shipped} <= set(test["strategy"]["matrix"]["python"])
    assert shipped not in str(test["continue-on-error"])
    assert oldest not in str(test["continue-on-error"])


def test_main_is_deployed_only_after_the_checks_of_a_pull_request() -> None:
    deploy = workflow("deploy.yml")
    assert "pull_request" in workflow("ci.yml")["on"]
    assert "workflow_call" in workflow("ci.yml")["on"]
    assert deploy["on"]["push"] == {"branches": ["main"]}
    assert deploy["jobs"]["check"]["uses"] == "./.github/workflows/ci.yml"
    assert deploy["jobs"]["deploy"]["needs"] == "check"
    assert deploy["jobs"]["deploy"]["environment"] == "production"
    assert "refs/heads/main" in deploy["jobs"]["deploy"]["if"]


def test_variables_are_the_documented_ones() -> None:
    text = WORKFLOWS["deploy.yml"].read_text()
    head = text[: text.index("\nname:")]
    assert set(re.findall(r"\bvars\.(\w+)", text)) == VARIABLES
    assert set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", head)) == VARIABLES | {"SMOKE_API_KEY"}
    assert set(re.findall(r"\bsecrets\.(\w+)", text)) == {"SMOKE_API_KEY"}
    assert "vars." not in WORKFLOWS["ci.yml"].read_text()


def test_images_are_built_for_the_services_and_released_by_digest() -> None:
    found = deploy_steps()
    for name in ("api", "worker"):
        (build,) = [s for s in found.values() if s.get("with", {}).get("target") == name]
        assert name in stages()
        assert build["id"] == name
        assert (ROOT / build["with"]["file"]).samefile(DOCKERFILE)
        assert build["with"]["push"] is True
        assert build["with"]["sbom"] is True
        assert f"/{name}:" in build["with"]["tags"]
        digest = f"${{{{ steps.{name}.outputs.digest }}}}"
        assert found["Release"]["env"][f"{name.upper()}_DIGEST"] == digest


def test_images_are_built_on_the_pinned_base_image() -> None:
    """`deploy.base_image` refuses one without a digest, and then the step fails."""
    found = deploy_steps()
    base = found["Find the pinned base image"]
    command = "python3 -m deploy.base_image | sed 's/^/argument=/' >> \"$GITHUB_OUTPUT\""
    assert (base["id"], base["run"]) == ("base", command)
    # The shell has pipefail, so the exit code of the module is that of the step.
    assert workflow("deploy.yml")["defaults"]["run"]["shell"] == "bash"
    builds = [s for s in found.values() if "docker/build-push-action@" in s.get("uses", "")]
    assert len(builds) == 2
    for build in builds:
        assert build["with"]["build-args"] == "${{ steps.base.outputs.argument }}"
        assert list(found).index(base["name"]) < list(found).index(build["name"])


def test_release_is_started_with_options_that_it_has() -> None:
    found = deploy_steps()
    values = {name: name.lower() for name in VARIABLES}
    values |= {"RUNNER_TEMP": "tmp", "API_DIGEST": "sha256:a", "WORKER_DIGEST": "sha256:w"}

    def parsed(step: str) -> Any:
        command = re.sub(r"\$(\w+)", lambda match: values[match[1]], found[step]["run"])
        start, python, flag, module, *words = shlex.split(command)
        # GitHub signals only the shell. Without exec, Python would run on beside the roll-back.
        assert (start, python, flag, module) == ("exec", "python3", "-m", "deploy.release")
        return argument_parser().parse_args(words)

    run, back = parsed("Release"), parsed("Roll back an interrupted release")
    assert (run.action, run.project, run.region) == ("run", "gcp_project", "gcp_region")
    assert run.api_url == "api_url"
    assert (run.api, run.api_image) == ("api_service", "gcp_registry/api@sha256:a")
    assert (run.workers, run.worker_image) == ("worker_services", "gcp_registry/worker@sha256:w")
    assert run.leave_interrupted
    assert (back.action, back.journal) == ("roll-back", run.journal)
    assert list(found)[-1] == "Roll back an interrupted release"
    condition = found["Roll back an interrupted release"]["if"]
    assert condition == "failure() || cancelled()"


def test_dependabot_updates_the_digest_of_the_base_image() -> None:
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    (docker,) = (update for update in updates if update["package-ecosystem"] == "docker")
    assert ROOT / docker["directory"].strip("/") == (ROOT / base_image.PINNED).parent
    (ignored,) = docker["ignore"]
    assert ignored["dependency-name"] == "python"
    updates_of_the_tag = {f"version-update:semver-{part}" for part in ("major", "minor", "patch")}
    assert set(ignored["update-types"]) == updates_of_the_tag


def test_dependabot_looks_where_something_is() -> None:
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    assert len({update["package-ecosystem"] for update in updates}) == len(updates) >= 4
    for update in updates:
        assert update["cooldown"]["default-days"] >= 7
        assert update["groups"]
        for folder in update.get("directories") or [update["directory"]]:
            pattern = folder.strip("/")
            # The images of development hold no Terraform.
            if pattern.startswith("terraform/") and not (ROOT / "terraform").exists():
                continue
            assert not pattern or list(ROOT.glob(pattern)), folder
