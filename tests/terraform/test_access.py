"""Who may do what: least privilege, one account each, nothing public."""

import re
from typing import Any

from terraform.tools.tree import Block, Module, nested, plain
from tests.support.stack import ROOT

# Every role of the tree, by the resource that gives it. A new one is added here, with thought.
ROLES = {
    "google_artifact_registry_repository_iam_member.deployer": "roles/artifactregistry.writer",
    "google_cloud_run_v2_service_iam_member.deployer": "roles/run.developer",
    "google_cloud_run_v2_service_iam_member.invoker": "roles/run.invoker",
    "google_project_iam_member.traces": "roles/cloudtrace.agent",
    "google_project_iam_member.user": "roles/datastore.user",
    "google_pubsub_subscription_iam_member.agent": "roles/pubsub.subscriber",
    "google_pubsub_topic_iam_member.agent": "roles/pubsub.publisher",
    "google_pubsub_topic_iam_member.publisher": "roles/pubsub.publisher",
    "google_pubsub_topic_iam_member.viewer": "roles/pubsub.viewer",
    "google_secret_manager_secret_iam_member.reader": "roles/secretmanager.secretAccessor",
    "google_service_account_iam_member.deployer": "roles/iam.serviceAccountUser",
    "google_service_account_iam_member.github": "roles/iam.workloadIdentityUser",
    "google_service_account_iam_member.push_token": "roles/iam.serviceAccountTokenCreator",
    "google_service_account_iam_member.signer": "roles/iam.serviceAccountTokenCreator",
    "google_storage_bucket_iam_member.reader": "roles/storage.objectViewer",
    "google_storage_bucket_iam_member.writer": "roles/storage.objectUser",
}


def resources(modules: dict[str, Module]) -> dict[str, Block]:
    return {
        name: block for module in modules.values() for name, block in module.of("resource").items()
    }


def test_these_are_all_the_roles(modules: dict[str, Module]) -> None:
    found = {
        name: plain(block.body["role"])
        for name, block in resources(modules).items()
        if "_iam_" in name and "role" in block.body
    }
    assert found == ROLES


def test_grants_add_and_never_replace(modules: dict[str, Module]) -> None:
    """A binding or a policy would take away what others were given."""
    assert not [name for name in resources(modules) if re.search(r"_iam_(binding|policy)\.", name)]


def test_the_role_on_entities_ends_at_one_database(modules: dict[str, Module]) -> None:
    grant = resources(modules)["google_project_iam_member.user"].body
    expression = dict(nested(grant))["condition"]["expression"]
    database = "projects/${var.project_id}/databases/${var.name}"
    assert plain(expression).replace("\\", "") == f'resource.name == "{database}"'


def test_only_the_api_reaches_the_database_of_the_keys(modules: dict[str, Module]) -> None:
    """The workers cannot make a key or raise a limit. `test_apply` reads the project's policy."""
    parts = modules["example"].of("module")
    databases = {
        name: part.body for name, part in parts.items() if "modules/database" in part.body["source"]
    }
    assert set(databases) == {"records", "keys"}
    keys = databases["keys"]
    accounts = {name: value for name, value in keys["accounts"].items() if name[:2] != "__"}
    assert accounts == {"api": "${module.api.account}"}
    names = modules["names"].of("output")
    assert keys["name"] == "${module.names.keys_database}"
    assert names["keys_database"].body["value"] != names["database"].body["value"]
    # The API uses it, and the workers do not know its name.
    settings = modules["settings"]
    users = [part for part, values in settings.locals.items() if "keys_database" in str(values)]
    assert users == ["api"]
    assert parts["settings"].body["keys_database"] == "${module.keys.database}"
    # A destroy refuses both, or deletes both.
    for argument in ("delete_protection", "point_in_time_recovery", "location"):
        assert keys[argument] == databases["records"][argument]
    assert "module.keys" in str(modules["example"].of("resource")["terraform_data.guard"].body)


def test_nothing_is_public(modules: dict[str, Module]) -> None:
    for module in modules.values():
        for block in module.blocks:
            if block.kind != "variable":
                assert "allUsers" not in str(block.body), block.name
    bucket = resources(modules)["google_storage_bucket.images"].body
    assert bucket["uniform_bucket_level_access"] is True
    assert plain(bucket["public_access_prevention"]) == "enforced"
    assert modules["example"].of("variable")["public"].body["default"] is False


def service(modules: dict[str, Module], name: str) -> dict[str, Any]:
    return modules["example"].of("module")[name].body


def test_the_worker_is_internal_and_called_by_one_account(modules: dict[str, Module]) -> None:
    worker = service(modules, "worker")
    assert plain(worker["ingress"]) == "INGRESS_TRAFFIC_INTERNAL_ONLY"
    assert worker["public"] is False
    # Pub/Sub and Scheduler reach it at its run.app address, so that one stays.
    assert "default_uri_disabled" not in resources(modules)["google_cloud_run_v2_service.this"].body
    callers = {key: value for key, value in worker["invokers"].items() if not key.startswith("__")}
    assert list(callers) == ["push"]
    assert "module.queue.push_account" in callers["push"]


def test_all_callers_of_the_worker_use_that_account_and_audience(
    modules: dict[str, Module],
) -> None:
    found = resources(modules)
    tokens = [
        dict(nested(dict(nested(found[name].body))[block]))["oidc_token"]
        for name, block in (
            ("google_pubsub_subscription.channel", "push_config"),
            ("google_pubsub_subscription.dead_letters", "push_config"),
            ("google_cloud_scheduler_job.call", "http_target"),
        )
    ]
    for token in tokens:
        assert token["service_account_email"] == "${google_service_account.push.email}"
        assert token["audience"] == "${var.push_audience}"
    # The worker demands what they send, and Cloud Run lets the audience through.
    assert "module.names.push_audience" in str(service(modules, "worker")["audiences"])
    assert "module.names.push_audience" in str(modules["example"].of("module")["settings"].body)
    assert "module.names.push_audience" in str(modules["example"].of("module")["queue"].body)


def test_each_service_has_a_separate_account(modules: dict[str, Module]) -> None:
    accounts = [name for name in resources(modules) if name.startswith("google_service_account.")]
    # this: one for each service.
    assert sorted(accounts) == [
        "google_service_account.deployer",
        "google_service_account.push",
        "google_service_account.this",
    ]
    assert not [name for name in resources(modules) if "service_account_key" in name]


def test_github_is_one_workflow_of_one_repository_branch_and_environment(
    modules: dict[str, Module],
) -> None:
    provider = resources(modules)["google_iam_workload_identity_pool_provider.github"].body
    assert "local.conditions" in provider["attribute_condition"]
    conditions = str(modules["delivery"].locals["conditions"])
    for claim in ("repository", "repository_id", "ref", "environment", "workflow_ref"):
        assert f"assertion.{claim} ==" in conditions
    # The workflow that is admitted, and its environment, are those of this repository.
    variables = modules["delivery"].of("variable")
    file = ROOT / ".github/workflows" / plain(variables["github_workflow"].body["default"])
    environment = plain(variables["github_environment"].body["default"])
    assert f"environment: {environment}\n" in file.read_text()


def test_services_that_receive_images_may_store_thumbnails(modules: dict[str, Module]) -> None:
    """They also store embeddings. Only creation, and not `objectViewer`, is enough for either."""
    policy = str(modules["policy"].locals["channels"])
    services = re.findall(r"classify_path, service = \\*\"(\w+)", policy)
    assert set(services) == {"interactive", "batch"}
    images = modules["example"].of("module")["images"].body
    writers = {name for name in images["writers"] if not name.startswith("__")}
    assert set(services) <= writers
    assert "api" in writers  # uploads


def test_each_secret_has_one_reader(modules: dict[str, Module]) -> None:
    """The workers cannot read KEY_SECRET, and only one service can read SMTP_URL."""
    secrets = modules["example"].of("module")["secrets"].body
    assert plain(secrets["secrets"]["api-keys"]["reader"]) == "api"
    assert 'reader = "notify"' in secrets["given"]
    api, worker = (modules["example"].of("module")[name].body for name in ("api", "worker"))
    assert re.findall(r"\b([A-Z][A-Z_]+)\b", str(api["secrets"])) == ["KEY_SECRET"]
    assert worker["secrets"] == '${each.key == "notify" ? local.mail_server : {}}'
    grant = resources(modules)["google_secret_manager_secret_iam_member.reader"].body
    assert plain(grant["member"]) == "serviceAccount:${var.readers[each.value.reader]}"


def test_values_of_secrets_are_in_no_state(modules: dict[str, Module]) -> None:
    for name, block in resources(modules).items():
        assert "secret_data" not in block.body, name
    assert "ephemeral.random_password" in str(
        resources(modules)["google_secret_manager_secret_version.this"].body["secret_data_wo"]
    )
