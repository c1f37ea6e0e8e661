"""The checker finds nothing in the tree, and finds each kind of mistake in a broken copy of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from terraform.tools import provider_names, references
from terraform.tools.provider_source import CHANGES, used
from terraform.tools.tree import load
from tests.support.stack import ROOT

# file, what stands there, what is put in its place, what must be said of it
MISTAKES = {
    "argument that does not exist": (
        "modules/queue/subscriptions.tf",
        "ack_deadline_seconds ",
        "ack_deadline ",
        "ack_deadline: no such argument",
    ),
    "argument in a nested block": (
        "modules/queue/subscriptions.tf",
        "max_delivery_attempts",
        "max_attempts",
        "dead_letter_policy.max_attempts: no such argument",
    ),
    "argument in a dynamic block": (
        "modules/service/service.tf",
        "secret  = env.value.secret",
        "name    = env.value.secret",
        "template.containers.env.value_source.secret_key_ref.name: no such argument",
    ),
    "block that does not exist": (
        "modules/images/bucket.tf",
        "soft_delete_policy {",
        "soft_delete {",
        "soft_delete: no such block",
    ),
    "block written as an argument": (
        "modules/queue/topics.tf",
        "message_storage_policy {\n",
        "message_storage_policy = {\n",
        "message_storage_policy: is a block, not an argument",
    ),
    "required argument left out": (
        "modules/edge/https.tf",
        "url_map          = google_compute_url_map.https.id\n",
        "",
        "url_map: required, and not given",
    ),
    "required argument of a nested block left out": (
        "modules/queue/dead_letters.tf",
        "service_account_email = google_service_account.push.email\n",
        "",
        "push_config.oidc_token.service_account_email: required, and not given",
    ),
    "type that does not exist": (
        "modules/edge/address.tf",
        '"google_compute_global_address"',
        '"google_compute_address_global"',
        "no resource google_compute_address_global",
    ),
    "resource that is not declared": (
        "modules/edge/https.tf",
        "google_compute_ssl_policy.this.id",
        "google_compute_ssl_policy.that.id",
        "google_compute_ssl_policy.that.id is not declared",
    ),
    "attribute that a resource does not have": (
        "modules/service/outputs.tf",
        "google_cloud_run_v2_service.this.uri",
        "google_cloud_run_v2_service.this.url",
        "is nothing that google_cloud_run_v2_service has",
    ),
    "data source that is not declared": (
        "modules/project/outputs.tf",
        "data.google_project.this.number",
        "data.google_project.other.number",
        "data.google_project.other.number is not declared",
    ),
    "output that does not exist": (
        "envs/example/services.tf",
        "module.images.bucket",
        "module.images.name",
        "module.images.name is not an output",
    ),
    "module that is not called": (
        "envs/example/queue.tf",
        'module.worker["batch"].url',
        'module.workers["batch"].url',
        "module.workers.url is not called",
    ),
    "module that is not there": (
        "envs/example/queue.tf",
        "../../modules/queue",
        "../../modules/queues",
        "there is no module at ../../modules/queues",
    ),
    "variable that is not declared": (
        "modules/edge/backend.tf",
        "var.log_sample_rate",
        "var.sample_rate",
        "var.sample_rate is not declared",
    ),
    "unused variable": (
        "modules/edge/backend.tf",
        "var.log_sample_rate",
        "1",
        "var.log_sample_rate is used by nothing",
    ),
    "field that an object does not have": (
        "envs/example/services.tf",
        "var.api.memory",
        "var.api.ram",
        "var.api.ram is not among its fields",
    ),
    "local value that is not declared": (
        "modules/queue/dead_letters.tf",
        "local.pubsub_agent",
        "local.agent",
        "local.agent is not declared",
    ),
    "argument that is no variable": (
        "envs/example/edge.tf",
        "  domain ",
        "  host   ",
        "host is no variable of edge",
    ),
    "required variable left out": (
        "envs/example/queue.tf",
        "  push_audience = module.names.push_audience\n",
        "",
        "push_audience is required and not given",
    ),
    "whole module that lacks a field": (
        "modules/policy/outputs.tf",
        'output "lease"',
        'output "rent"',
        "policy lacks lease",
    ),
    "each without for_each": (
        "modules/project/apis.tf",
        "  for_each = local.apis\n",
        "",
        "each.key is used without for_each",
    ),
    "circle": (
        "envs/example/services.tf",
        "push_audience = module.names.push_audience",
        "push_audience = module.queue.subscriptions.jobs",
        "a circle: ",
    ),
}


def problems(root: Path) -> list[str]:
    modules = load(root)
    return [*provider_names.problems(modules), *references.problems(modules)]


def test_every_name_and_reference_is_known() -> None:
    assert problems(ROOT / "terraform") == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str, tree: Path) -> None:
    name, there, instead, said = MISTAKES[mistake]
    file = tree / name
    text = file.read_text()
    assert there in text
    file.write_text(text.replace(there, instead, 1))
    found = problems(tree)
    assert any(said in problem for problem in found), found


def test_references_in_text_are_none(tree: Path) -> None:
    file = tree / "modules/edge/address.tf"
    file.write_text(file.read_text().replace('name    = "', 'name    = "$${var.nowhere} var.no '))
    assert problems(tree) == []
    file.write_text(file.read_text().replace("$${var.nowhere}", "${var.nowhere}"))
    assert any("var.nowhere is not declared" in problem for problem in problems(tree))


def test_the_command_fails_for_a_wrong_name(tree: Path) -> None:
    command = [sys.executable, "-m", "terraform.tools.check", str(tree)]
    assert subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode == 0
    file = tree / "modules/database/database.tf"
    file.write_text(file.read_text().replace("location_id", "location"))
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "database/database.tf: resource.google_firestore_database.this" in done.stderr


def test_the_command_fails_for_an_empty_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "terraform.tools.check", str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode == 1


def test_the_names_are_those_of_the_types_used() -> None:
    names = provider_names.names()
    changed = json.loads(CHANGES.read_text())["names"]
    # Written by hand, because they are not of the provider whose package this reads.
    others = {("resource", type_) for type_ in changed["resource"]}
    found = {(kind, type_) for kind in ("resource", "data") for type_ in names[kind]}
    assert found - others == set(used())
    for kind, types in changed.items():
        for type_, groups in types.items():
            for group in ("required", "optional"):
                assert set(groups.get(group, ())) <= set(names[kind][type_][group])
