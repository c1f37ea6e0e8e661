"""READMEs, descriptions, versions and the example say what is there."""

import json
import re

import hcl2
import pytest

from core.domain.policy import DeliveryPolicy
from terraform.tools import tables
from terraform.tools.tree import TERRAFORM, Module, folders, nested, plain
from tests.support.stack import ROOT

names = pytest.mark.parametrize("module", [folder.name for folder in folders()], indirect=True)


@pytest.fixture
def module(request: pytest.FixtureRequest, modules: dict[str, Module]) -> Module:
    return modules[request.param]


@names
def test_the_tables_are_current(module: Module) -> None:
    readme = tables.readme_of(module).read_text()
    assert tables.readme_with_tables(readme, module) == readme, (
        "run python -m terraform.tools.tables"
    )
    for name in [*module.of("variable"), *module.of("output")]:
        assert f"| `{name}` |" in readme


@names
def test_everything_is_described_and_typed(module: Module) -> None:
    for name, variable in module.of("variable").items():
        assert plain(variable.body["description"]), name
        assert "type" in variable.body, name
    for name, output in module.of("output").items():
        assert plain(output.body["description"]), name


@names
def test_versions_are_pinned(module: Module) -> None:
    (terraform,) = (block for block in module.blocks if block.kind == "terraform")
    assert plain(terraform.body["required_version"]) == ">= 1.11"
    providers = {
        name: plain(provider["version"])
        for _, required in nested(terraform.body)
        for name, provider in required.items()
        if not name.startswith("__")
    }
    assert set(providers) == module.providers
    if "google" in providers:
        assert providers["google"] == "~> 7.0"


def test_one_file_to_copy_and_one_value_to_give(modules: dict[str, Module]) -> None:
    example = modules["example"]
    variables = example.of("variable")
    required = [name for name, block in variables.items() if "default" not in block.body]
    assert required == ["project_id"]
    text = (example.folder / "terraform.tfvars.example").read_text()
    given = hcl2.loads(re.sub(r"^# (?=\w+ += )", "", text, flags=re.MULTILINE))
    assert set(given) - {"__comments__", "__inline_comments__"} <= set(variables)
    assert len(given) > 6
    assert re.search(r"^project_id +=", text, re.MULTILINE)


def test_the_remote_state_is_a_bucket() -> None:
    backend = hcl2.loads((TERRAFORM / "envs/example/backend.tf.example").read_text())
    assert set(backend["terraform"][0]["backend"][0]) == {'"gcs"'}


def test_variables_of_the_github_workflow_are_outputs(modules: dict[str, Module]) -> None:
    example = modules["example"]
    wanted = {
        "GCP_PROJECT",
        "GCP_REGION",
        "GCP_WORKLOAD_IDENTITY_PROVIDER",
        "GCP_DEPLOYER",
        "GCP_REGISTRY",
        "API_SERVICE",
        "WORKER_SERVICES",
        "API_URL",
    }
    assert wanted <= set(example.of("output"))


def test_the_list_of_modules_is_whole(modules: dict[str, Module]) -> None:
    text = (TERRAFORM / "README.md").read_text()
    for module in modules.values():
        if module.folder.parent.name == "modules":
            assert f"(modules/{module.folder.name}/README.md)" in text


def test_no_secret_and_no_state_can_be_committed() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"*.tfstate", "*.tfstate.*", "*.tfvars", ".terraform/"} <= set(ignored)


def test_images_outlive_their_messages(modules: dict[str, Module]) -> None:
    images = modules["images"]
    validation = json.dumps(images.of("variable")["delete_after_days"].body["validation"])
    least = int(re.search(r">= (\d+)", validation)[1])  # type: ignore[index]
    assert least * 24 * 3600 > DeliveryPolicy().retention


def test_the_lock_holds_every_provider_at_an_allowed_version(modules: dict[str, Module]) -> None:
    example = modules["example"]
    text = (example.folder / ".terraform.lock.hcl").read_text()
    locked = {
        plain(address).removeprefix("registry.terraform.io/hashicorp/"): body
        for block in hcl2.loads(text)["provider"]
        for address, body in block.items()
    }
    assert set(locked) == example.providers
    for name, body in locked.items():
        assert plain(body["constraints"]) in (example.folder / "versions.tf").read_text(), name
        major = plain(body["constraints"]).removeprefix("~> ").split(".")[0]
        assert plain(body["version"]).split(".")[0] == major, name
        sums = {plain(each) for each in body["hashes"]}
        releases = {each for each in sums if re.fullmatch(r"zh:[0-9a-f]{64}", each)}
        assert len(releases) >= 12, f"{name}: one for each platform of the release"
