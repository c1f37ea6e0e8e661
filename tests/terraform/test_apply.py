"""The whole Terraform with its real providers: apply, plan, change, apply and destroy.

`GLIMPSE_TERRAFORM_PROVIDERS` says where the providers come from: `registry`, or a folder that is a
Terraform filesystem mirror. Without it, these tests are skipped: they need a network and take
minutes.
`make terraform` sets it. `GLIMPSE_TERRAFORM_VERSION` chooses another version of hashicorp/google.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.requirements import Requirement
from tests.support.terraform import copy_of_tree, terraform_binary
from tests.terraform.control_plane import PROJECT, ControlPlane, documents

PROVIDERS = Requirement(
    "Terraform's providers",
    "run `make terraform`, with a network",
    in_ci=False,  # a job of its own runs them
)
CHANNEL = f"projects/{PROJECT}/notificationChannels/777"
MINIMAL: dict[str, Any] = {
    "project_id": PROJECT,
    "propagation_seconds": {"apis": 0, "metrics": 0},
}
FULL: dict[str, Any] = {
    **MINIMAL,
    "domain": "labels.example.com",
    "public": True,
    "alert_email": "ops@example.com",
    "github_repository": "example/glimpse",
    "github_repository_id": "42",
    "billing_account": "012345-6789AB-CDEF01",
    "budget_channels": [CHANNEL],
    "notification_channels": [f"projects/{PROJECT}/notificationChannels/888"],
    "import_buckets": ["example-imports", "example-models"],
    "model_uri": "gs://example-models/vit",
    "extra_model_uris": ["gs://example-more/a"],
    "email": {"secret": "mail-server", "from": "glimpse@example.com"},
    "metrics": True,
    "thumbnails": True,
    "images": {"coldline_after_days": 60, "delete_after_days": 400},
    "worker": {"notify": {"min_instances": 1}},
}
# Each apply takes a minute on two cores.
pytestmark = pytest.mark.timeout(1800)
UNPROTECTED = {"deletion_protection": False, "force_destroy_images": True}


@dataclass
class Run:
    """What a Terraform command said, and its exit code."""

    code: int
    text: str

    @property
    def errors(self) -> str:
        return "\n".join(re.findall(r"^(?:\S* )?Error: .*(?:\n.*){0,6}", self.text, re.MULTILINE))


@dataclass
class Installation:
    """A copy of the tree that a test may break, applied to a control plane."""

    folder: Path
    plane: ControlPlane

    def __post_init__(self) -> None:
        self.tree = copy_of_tree(self.folder)
        self.example = self.tree / "envs/example"
        source = os.environ["GLIMPSE_TERRAFORM_PROVIDERS"]
        configuration = self.folder / "cli.tfrc"
        if source == "registry":
            cache = f'plugin_cache_dir = "{_cache()}"\n'
            configuration.write_text(f"disable_checkpoint = true\n{cache}")
        else:
            mirror = f'filesystem_mirror {{ path = "{source}" }}'
            configuration.write_text(
                f"disable_checkpoint = true\nprovider_installation {{\n  {mirror}\n}}\n"
            )
            # Providers that were built from source do not have the checksums of the releases.
            (self.example / ".terraform.lock.hcl").unlink()
        if version := os.environ.get("GLIMPSE_TERRAFORM_VERSION"):
            for file in self.tree.rglob("versions.tf"):
                file.write_text(file.read_text().replace('"~> 7.0"', f'"{version}"'))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TF_")},
            **self.plane.environment,
            "TF_CLI_CONFIG_FILE": str(configuration),
            "TF_IN_AUTOMATION": "1",
            "TF_INPUT": "0",
        }

    def __call__(self, *words: str, **variables: Any) -> Run:
        if variables:
            (self.example / "terraform.tfvars.json").write_text(json.dumps(variables))
        done = subprocess.run(
            [terraform_binary(), *words, "-no-color"],
            cwd=self.example,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=900,
        )
        return Run(done.returncode, done.stdout)

    def init(self) -> None:
        done = self("init", "-backend=false")
        assert done.code == 0, done.text

    def apply(self, **variables: Any) -> Run:
        return self("apply", "-auto-approve", **variables)

    def applied(self, **variables: Any) -> None:
        """Apply, and nothing is left to change."""
        done = self.apply(**variables)
        assert done.code == 0, done.errors or done.text[-3000:]
        assert self.plane.refused == []
        assert self.changes() == []

    def changes(self, **variables: Any) -> list[str]:
        """What a plan would change, as `ACTION ADDRESS`."""
        done = self("plan", "-out=plan", **variables)
        assert done.code == 0, done.text[-3000:]
        shown = self("show", "-json", "plan")
        resources = json.loads(shown.text)["resource_changes"]
        return [
            f"{'/'.join(each['change']['actions'])} {each['address']}"
            for each in resources
            if each["change"]["actions"] not in (["no-op"], ["read"])
        ]

    def replace(self, file: str, old: str, new: str) -> None:
        """Break the tree. `old` must be there."""
        path = self.tree / file
        text = path.read_text()
        assert old in text, f"{old!r} is not in {file}"
        path.write_text(text.replace(old, new))


def _cache() -> Path:
    folder = Path(os.environ.get("RUNNER_TEMP", "/tmp")) / "glimpse-terraform-plugins"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    if not os.environ.get("GLIMPSE_TERRAFORM_PROVIDERS") or documents() is None:
        PROVIDERS.absent()
    plane = ControlPlane()
    secret = f"projects/{PROJECT}/secrets/mail-server"
    plane.resources[secret] = {"name": secret, "replication": {"automatic": {}}}
    plane.resources[f"{secret}/versions/1"] = {"name": f"{secret}/versions/1", "state": "ENABLED"}
    for number, kind in ((777, "email"), (888, "pubsub")):
        name = f"projects/{PROJECT}/notificationChannels/{number}"
        plane.resources[name] = {"name": name, "type": kind}
    yield plane
    plane.close()


@pytest.fixture
def install(tmp_path: Path, plane: ControlPlane) -> Installation:
    return Installation(tmp_path, plane)


def test_minimal_installation(install: Installation, plane: ControlPlane) -> None:
    """Apply, plan without changes, refused destroy, destroy."""
    install.init()
    install.applied(**MINIMAL)
    made = len(plane.resources)
    assert made > 60
    workers = {"glimpse-interactive", "glimpse-batch", "glimpse-notify"}
    assert accounts_of(plane, "glimpse") == {"glimpse-api", *workers}
    assert accounts_of(plane, "glimpse-keys") == {"glimpse-api"}
    done = install("destroy", "-auto-approve")
    assert done.code == 1
    assert "Refused: set" in done.text
    assert len(plane.resources) == made  # nothing is gone
    # The bucket with its images is protected too, and first.
    install.applied(**MINIMAL, deletion_protection=False)
    done = install("destroy", "-auto-approve")
    assert done.code == 1
    assert "Refused: set" in done.text
    assert len(plane.resources) == made
    install.applied(**MINIMAL, **UNPROTECTED)
    done = install("destroy", "-auto-approve")
    assert done.code == 0, done.errors


def accounts_of(plane: ControlPlane, database: str) -> set[str]:
    """The accounts to which the project's policy gives the entities of this database."""
    ours = f'resource.name == "projects/{PROJECT}/databases/{database}"'
    found = set()
    for binding in plane.policies[f"projects/{PROJECT}"]["bindings"]:
        assert binding["role"] in ("roles/cloudtrace.agent", "roles/datastore.user")
        if binding["role"] == "roles/datastore.user":
            condition = binding["condition"]["expression"]
            assert condition.startswith('resource.name == "projects/')
            if condition == ours:
                found |= {
                    member.partition(":")[2].partition("@")[0] for member in binding["members"]
                }
    return found


def key_version(plane: ControlPlane) -> str:
    """The version of the secret behind the API keys that the API reads."""
    (name,) = (name for name in plane.named("/services/") if name.endswith("/glimpse-api"))
    (container,) = plane.resources[name]["template"]["containers"]
    (found,) = (each for each in container["env"] if each["name"] == "KEY_SECRET")
    return str(found["valueSource"]["secretKeyRef"]["version"])


def test_every_variable_can_be_switched_on_off_and_on(
    install: Installation, plane: ControlPlane
) -> None:
    install.init()
    install.applied(**FULL)
    # A version of the API's secret that was added by hand, to rotate it.
    done = install.apply(**FULL, key_secret_read_version="2")
    assert "versions/2 was not found" in done.text
    secret = f"projects/{PROJECT}/secrets/glimpse-api-keys"
    plane.refused.clear()
    plane.resources[f"{secret}/versions/2"] = {"name": f"{secret}/versions/2", "state": "ENABLED"}
    rotated = {**FULL, "key_secret_read_version": "2"}
    assert install.changes(**rotated) == [
        "update module.api.google_cloud_run_v2_service.this",
    ]
    install.applied(**rotated)
    assert key_version(plane) == "2"
    planned = install.changes(**MINIMAL)
    # The domain, the e-mail address and GitHub replace nothing of Pub/Sub.
    assert not [change for change in planned if "delete" in change and "queue" in change], planned
    install.applied(**MINIMAL)
    assert key_version(plane) == "1"
    install.applied(**FULL)
    # Another region would replace everything: refused before anything is deleted.
    made = set(plane.resources)
    done = install.apply(**FULL, region="europe-west4")
    assert "Refused: set" in done.text
    assert set(plane.resources) == made
    install.applied(**FULL, **UNPROTECTED)
    done = install("destroy", "-auto-approve")
    assert done.code == 0, done.errors
    # And again: the names of deleted pools stay reserved.
    done = install.apply(**FULL)
    assert done.code == 0, done.errors


def test_apply_waits_for_apis_and_metrics(install: Installation, plane: ControlPlane) -> None:
    """On an empty project, one apply is enough."""
    plane.api_seconds, plane.metric_seconds = 5, 5
    for name in list(plane.enabled):
        plane.enabled[name] = time.monotonic() - 60
    install.init()
    install.applied(**{**MINIMAL, "propagation_seconds": {"apis": 10, "metrics": 10}})


# The same faults again: file, what to replace, by what, and the step that shows the fault.
SEEDS: dict[str, tuple[str, str, str, str]] = {
    "zeros in the dashboard": (
        "modules/observability/dashboard.tf",
        "if position != 0",
        "if position >= 0",
        "second plan",
    ),
    "empty legends in the dashboard": (
        "modules/observability/dashboard.tf",
        'line.name == "" ? {} :',
        'line.name == "-" ? {} :',
        "second plan",
    ),
    "default docker_config": (
        "modules/delivery/registry.tf",
        "  cleanup_policy_dry_run = false",
        "  docker_config {\n    immutable_tags = false\n  }\n  cleanup_policy_dry_run = false",
        "second plan",
    ),
    "channel deleted before its policies": (
        "modules/observability/channel.tf",
        "create_before_destroy = true",
        "create_before_destroy = false",
        "off",
    ),
    "number of the project unknown when APIs change": (
        "modules/project/apis.tf",
        "  project_id = var.project_id\n}",
        "  project_id = var.project_id\n  depends_on = [google_project_service.this]\n}",
        "off replaces",
    ),
    "pool with a fixed name": (
        "modules/delivery/github.tf",
        "-github-${random_id.pool[0].hex}",
        "-github",
        "on again",
    ),
    "two owners of one grant": (
        "modules/buckets/readers.tf",
        '"api/${bucket}" => { service = "api", bucket = bucket }',
        '"import/${bucket}" => { service = "api", bucket = bucket }',
        "imports off",
    ),
    "budget with a channel that is not e-mail": (
        "envs/example/operation.tf",
        "var.budget_channels",
        "var.notification_channels",
        "first apply",
    ),
    "no guard": (
        "envs/example/guard.tf",
        "&& exit 1",
        "",
        "protected destroy",
    ),
    "no wait for APIs": (
        "modules/project/apis.tf",
        '"${var.propagation_seconds}s"',
        '"0s"',
        "slow APIs",
    ),
    "no wait for metrics": (
        "modules/observability/alerts.tf",
        '"${var.propagation_seconds}s"',
        '"0s"',
        "slow metrics",
    ),
}


@pytest.mark.skipif(
    os.environ.get("GLIMPSE_TERRAFORM_SEEDS") != "all", reason="set GLIMPSE_TERRAFORM_SEEDS=all"
)
@pytest.mark.parametrize("fault", SEEDS)
def test_seeded_fault_is_found(install: Installation, plane: ControlPlane, fault: str) -> None:
    """Each step is one that the tests above take without an error."""
    file, old, new, step = SEEDS[fault]
    install.replace(file, old, new)
    install.init()
    match step:
        case "first apply":
            assert install.apply(**FULL).code == 1
        case "second plan":
            assert install.apply(**MINIMAL).code == 0
            assert install.changes() != []
        case "off":
            assert install.apply(**MINIMAL, alert_email="ops@example.com").code == 0
            assert install.apply(**MINIMAL).code == 1
        case "off replaces":
            assert install.apply(**MINIMAL, domain="labels.example.com").code == 0
            later = install.changes(**MINIMAL, billing_account="012345-6789AB-CDEF01")
            assert [change for change in later if "delete" in change and "queue" in change]
        case "on again":
            github = {**MINIMAL, "github_repository": "example/glimpse"}
            assert install.apply(**github).code == 0
            assert install.apply(**MINIMAL).code == 0
            assert install.apply(**github).code == 1
        case "imports off":
            both = {**MINIMAL, "model_uri": "gs://example-models/vit"}
            assert install.apply(**both, import_buckets=["example-models"]).code == 0
            assert install.apply(**both).code == 0
            assert install.changes() != []
        case "protected destroy":
            assert install.apply(**MINIMAL).code == 0
            made = len(plane.resources)
            install("destroy", "-auto-approve")
            assert len(plane.resources) < made
        case "slow APIs" | "slow metrics":
            plane.api_seconds, plane.metric_seconds = (20, 0) if step == "slow APIs" else (0, 20)
            for name in list(plane.enabled):
                plane.enabled[name] = time.monotonic() - 60
            waits = {"apis": 40, "metrics": 40}
            assert install.apply(**{**MINIMAL, "propagation_seconds": waits}).code == 1
