"""compose/compose.yaml agrees with the images and settings. A schema check cannot see this."""

import re
from typing import Any

import pytest
import yaml

from compose.emulators import ABSENT, missing
from core.domain.policy import SHUTDOWN_SECONDS
from core.settings import Settings
from tests.support.images import COMPOSE, services, stages
from tests.support.settings import isolated_settings

SERVICES = services()
STAGES = stages()
DEFAULTS = isolated_settings()
BUILT = ("storage", "set-up", "worker", "api", "scheduler")
EMULATORS = {"datastore": 8181, "pubsub": 8085, "storage": 9023}
# Settings that compose.yaml does not pass on, and the reason.
FIXED_BY_THE_IMAGE = {"host", "api_port", "worker_port", "port", "data_dir"}
NOT_FOR_EMULATORS = {
    *("push_auth", "push_audience", "push_service_account"),
}


def environment(name: str) -> dict[str, str | None]:
    return dict(SERVICES[name]["environment"])


def published(service: dict[str, Any]) -> list[str]:
    return list(service.get("ports", []))


@pytest.mark.parametrize("name", BUILT)
def test_every_setting_reaches_every_container(name: str) -> None:
    named = {key.lower() for key in environment(name) if not key.startswith("OTEL_")}
    assert named == Settings.model_fields.keys() - FIXED_BY_THE_IMAGE - NOT_FOR_EMULATORS


def test_values_are_valid_settings_with_the_addresses_of_the_containers() -> None:
    given = {k.lower(): v for k, v in environment("api").items() if v is not None}
    for name in ("log_format", "allowed_hosts"):
        given[name] = re.sub(rf"^\$\{{{name.upper()}:-(.+)\}}$", r"\1", given[name])
    settings = isolated_settings(**given)  # text, as in a process
    assert settings.backend == "emulator"
    assert settings.datastore_emulator_host == f"datastore:{EMULATORS['datastore']}"
    assert settings.pubsub_emulator_host == f"pubsub:{EMULATORS['pubsub']}"
    assert settings.storage_emulator_host == f"http://storage:{EMULATORS['storage']}"
    assert settings.push_endpoint == f"http://worker:{DEFAULTS.worker_port}"
    # A browser on the host reaches the published ports, as it reaches services without containers.
    assert settings.api_hosts == DEFAULTS.api_hosts
    assert "worker" in settings.worker_hosts


def test_delivery_settings_have_no_values() -> None:
    """The containers get them from the environment, or use the defaults."""
    delivery = ["DELIVERY_ATTEMPTS", "MAX_BACKOFF_SECONDS", "LEASE_SECONDS"]
    for name in BUILT:
        assert {environment(name)[key] for key in delivery} == {None}


def test_targets_exist() -> None:
    for name, service in SERVICES.items():
        if build := service.get("build"):
            assert (COMPOSE.parent / build["context"] / build["dockerfile"]).is_file()
            assert build["target"] in STAGES, name
    assert SERVICES["api"]["build"]["target"] == "api"
    assert SERVICES["worker"]["build"]["target"] == "worker"


def test_images_of_others_are_pinned() -> None:
    images = {s["image"] for s in SERVICES.values() if "build" not in s}
    assert images
    for image in images:
        assert re.search(r":\d+\.\d+\.\d+", image), image


@pytest.mark.parametrize("name", SERVICES)
def test_dependencies_can_be_met(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        service = SERVICES[other]
        if how["condition"] == "service_healthy":
            target = service.get("build", {}).get("target", "")
            assert "healthcheck" in service or STAGES[target].all("HEALTHCHECK"), other
        else:
            assert how["condition"] == "service_completed_successfully"
            # A container that restarts after each end does not complete.
            assert service["restart"] == "no", other


def test_services_start_after_the_set_up_and_the_emulators() -> None:
    assert SERVICES["set-up"]["depends_on"].keys() == EMULATORS.keys()
    for name in ("api", "worker", "scheduler"):
        waits = SERVICES[name]["depends_on"]["set-up"]
        assert waits == {"condition": "service_completed_successfully"}


def test_ports_are_bound_to_this_machine() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in published(service))
    for name, port in (("api", DEFAULTS.api_port), ("worker", DEFAULTS.worker_port)):
        assert published(SERVICES[name]) == [f"127.0.0.1:${{{name.upper()}_PORT:-{port}}}:{port}"]
        assert STAGES[name].last("EXPOSE") == str(port)


@pytest.mark.parametrize(("name", "port"), EMULATORS.items())
def test_emulators_listen_on_their_ports(name: str, port: int) -> None:
    command = " ".join(SERVICES[name]["command"])
    assert f"0.0.0.0:{port}" in command or f"--host=0.0.0.0 --port={port}" in command
    assert f"http://127.0.0.1:{port}/" in " ".join(SERVICES[name]["healthcheck"]["test"])


def test_container_of_a_hanging_datastore_ends() -> None:
    """The lookup is the one that the supervisor sends."""
    from core.backends.google.endpoints import DEMO_PROJECT

    kind, command = SERVICES["datastore"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    assert f"/v1/projects/{DEMO_PROJECT}:lookup" in command
    assert f"--data '{ABSENT.decode()}'" in command
    # 28 is curl's status after --max-time. Docker would otherwise end curl before.
    assert "|| { [ $$? = 28 ] && kill 1; exit 1; }" in command
    (seconds,) = re.findall(r"--max-time (\d+)", command)
    assert int(seconds) < int(SERVICES["datastore"]["healthcheck"]["timeout"].removesuffix("s"))
    assert SERVICES["datastore"]["restart"] == "on-failure"


def test_emulators_have_the_project_of_the_services() -> None:
    from core.backends.google.endpoints import DEMO_PROJECT

    for name in ("datastore", "pubsub"):
        assert f"--project={DEMO_PROJECT}" in SERVICES[name]["command"]


def test_commands_are_installed_modules() -> None:
    from importlib.util import find_spec

    for name in ("storage", "set-up", "scheduler"):
        python, flag, module = SERVICES[name]["command"][:3]
        assert (python, flag) == ("python", "-m")
        assert find_spec(module) is not None
    assert not [s for s in missing() if "gcp-storage-emulator" in s]


@pytest.mark.parametrize("name", SERVICES)
def test_containers_reap_processes_and_gain_no_privileges(name: str) -> None:
    assert SERVICES[name]["init"] is True
    assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]
    if name in BUILT:
        assert SERVICES[name]["cap_drop"] == ["ALL"]


def test_stopping_service_has_enough_time() -> None:
    for name in ("api", "worker"):
        assert int(SERVICES[name]["stop_grace_period"].rstrip("s")) > SHUTDOWN_SECONDS


def test_durable_data_is_in_named_volumes() -> None:
    volumes = yaml.safe_load(COMPOSE.read_text())["volumes"]
    mounted = {
        v.split(":")[0] for s in SERVICES.values() for v in s.get("volumes", []) if v == str(v)
    }
    assert mounted == volumes.keys() == {"datastore", "storage", "api", "push"}


def test_containers_that_push_and_the_worker_share_the_secret() -> None:
    sharing = {name for name, s in SERVICES.items() if "push:/data" in s.get("volumes", [])}
    assert sharing == {"worker", "set-up", "scheduler"}
