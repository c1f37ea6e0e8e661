"""Releases against real processes of Glimpse, with a stand-in for Cloud Run's API.

The commands go through a small `gcloud` of the tests. With `make releases` they go through the real
one, which takes about a second of CPU time for each command.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from deploy import preflight
from deploy.cloud_run import TAG, CloudRun
from deploy.smoke import SmokeFailed, Target, random_image, smoke
from tests.support import cloud_run
from tests.support.cloud_run import Fault
from tests.support.pictures import sha256
from tests.support.releases import REAL, ended, image, install_gcloud, start
from tests.support.requirements import GCLOUD
from tests.support.stack import Stack, until

PLACEHOLDER = "us-docker.pkg.dev/cloudrun/container/hello"
# The real gcloud takes a second or two for each of about a hundred commands.
pytestmark = [pytest.mark.timeout(600)] if REAL else []
WORKERS = ("interactive", "batch", "notify")
SERVICES = (*WORKERS, "api")
OLD = {name: {"00001": 100} for name in SERVICES}
NEW = {name: {"00002": 100} for name in SERVICES}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, colour_bundle: Path) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("release"), colour_bundle) as running:
        yield running


@pytest.fixture
def cloud(tmp_path: Path, stack: Stack) -> Iterator[cloud_run.CloudRun]:
    """Four services of version 1. Images of version 2 work, those of version 3 never start."""
    fake = cloud_run.CloudRun(tmp_path)
    fake.backends[PLACEHOLDER] = "placeholder"
    for name in SERVICES:
        for version in (1, 2):
            fake.backends[image(name, version)] = str(stack.api.base_url)
        fake.create(name, image(name, 1), "internal" if name in WORKERS else "all")
    install_gcloud(fake)
    yield fake
    fake.close()


def options(*more: str, version: int = 2, action: str = "run") -> list[str]:
    return [
        *(action, "--project=p", "--region=europe-west1", "--api=api"),
        *(f"--workers={','.join(WORKERS)}", "--timeout=20"),
        *(f"--api-image={image('api', version)}", f"--worker-image={image('notify', version)}"),
        *more,
    ]


def release(cloud: cloud_run.CloudRun, *more: str, **changes: Any) -> tuple[int, str]:
    return ended(start(cloud, *options(*more, **changes)))


def roll_back(cloud: cloud_run.CloudRun) -> tuple[int, str]:
    return ended(start(cloud, "roll-back"))


def traffic(cloud: cloud_run.CloudRun) -> dict[str, dict[str, int]]:
    return {name: cloud.traffic(name) for name in SERVICES}


def images(cloud: cloud_run.CloudRun) -> dict[str, str]:
    return {name: cloud.image(name) for name in SERVICES}


def summary(cloud: cloud_run.CloudRun) -> str:
    return (cloud.folder / "summary.md").read_text()


def assert_rolled_back(cloud: cloud_run.CloudRun, code: int, said: str) -> None:
    assert code == 1, said
    assert traffic(cloud) == OLD, said
    # A later `terraform apply` starts the image that works, and no tag keeps a revision warm.
    assert images(cloud) == {name: image(name, 1) for name in SERVICES}, said
    assert not any(cloud.tags(name) for name in SERVICES)
    assert not (cloud.folder / "j").exists()


def test_release_moves_the_workers_first_and_then_the_api(cloud: cloud_run.CloudRun) -> None:
    code, said = release(cloud)
    assert code == 0, said
    assert traffic(cloud) == NEW
    order = re.findall(r"`(\w+)-00002-\w+` gets the", summary(cloud))
    assert order == ["interactive", "batch", "notify", "api"]
    assert not any(cloud.tags(name) for name in SERVICES)
    assert not (cloud.folder / "j").exists()
    assert summary(cloud).startswith("## Release of api, notify, batch, interactive\n\n- ")
    assert all(image(name, 2) in summary(cloud) for name in SERVICES)
    assert summary(cloud).count("works") == 3
    # Terraform would remove a revision's name in each later plan.
    for name in SERVICES:
        assert "name" not in cloud.services[name]["spec"]["template"].get("metadata", {})
    assert "❌" not in summary(cloud)


def test_first_release_replaces_the_placeholder(cloud: cloud_run.CloudRun) -> None:
    for name in SERVICES:
        cloud.create(name, PLACEHOLDER, "internal" if name in WORKERS else "all")
    code, said = release(cloud)
    assert code == 0, said
    assert traffic(cloud) == NEW
    assert "placeholder and was not tested" in summary(cloud)


def test_first_release_that_fails_can_be_repeated(cloud: cloud_run.CloudRun) -> None:
    """The template names the new image then, but the placeholder still serves."""
    for name in SERVICES:
        cloud.create(name, PLACEHOLDER, "internal" if name in WORKERS else "all")
    cloud.down.add(("api", TAG))
    code, said = release(cloud)
    assert code == 1, said
    assert traffic(cloud) == OLD
    assert images(cloud) == dict.fromkeys(SERVICES, PLACEHOLDER)
    cloud.down.clear()
    code, said = release(cloud)
    assert code == 0, said
    assert "❌" in summary(cloud).split("## Release")[1]
    assert "❌" not in summary(cloud).split("## Release")[2]


def test_revision_that_never_starts_raises_no_false_alarm(cloud: cloud_run.CloudRun) -> None:
    """Every later gcloud ends with 1, because the newest revision is not ready."""
    code, said = release(cloud, version=3)
    assert_rolled_back(cloud, code, said)
    assert "does not start" in said
    assert "could NOT" not in summary(cloud)
    assert "could NOT" not in said


def test_new_api_that_fails_its_test_gets_no_traffic(cloud: cloud_run.CloudRun) -> None:
    cloud.down.add(("api", TAG))
    code, said = release(cloud)
    assert_rolled_back(cloud, code, said)
    assert "`api-00002" in summary(cloud)
    assert not re.search(r"`api-\S+` gets the requests", summary(cloud))


def test_failure_after_the_move_rolls_the_api_back_before_the_workers(
    cloud: cloud_run.CloudRun, stack: Stack
) -> None:
    """The new API works at its own address, but not in service."""

    def break_api(method: str, path: str, body: dict[str, Any] | None) -> None:
        if cloud.traffic("api") == {"00002": 100}:
            cloud.down.add(("api", ""))
        else:
            cloud.down.discard(("api", ""))

    cloud.on_request = break_api
    code, said = release(cloud, "--timeout=3")
    assert_rolled_back(cloud, code, said)
    back = re.findall(r"`(\w+)` has its traffic back", summary(cloud))
    assert back == ["api", "notify", "batch", "interactive"]
    assert re.search(r"`api-\S+` gets the requests", summary(cloud))


def test_release_behind_a_load_balancer_tests_the_public_address(
    cloud: cloud_run.CloudRun, stack: Stack
) -> None:
    annotations = cloud.services["api"]["metadata"]["annotations"]
    annotations["run.googleapis.com/ingress"] = "internal-and-cloud-load-balancing"
    code, said = release(cloud)
    assert code == 2
    assert "API_URL" in said
    assert traffic(cloud) == OLD
    code, said = release(cloud, f"--api-url={stack.api.base_url}")
    assert code == 0, said
    assert traffic(cloud) == NEW
    assert "cannot be tested before it is in service" in summary(cloud)


def test_release_activates_applied_settings_without_new_images(
    cloud: cloud_run.CloudRun,
) -> None:
    """After `terraform apply`, each service has a revision without traffic."""
    arguments = [each for each in options() if "-image=" not in each]
    for name in SERVICES:
        service = cloud.services[name]
        env = service["spec"]["template"]["spec"]["containers"][0]["env"]
        env.append({"name": "LOG_LEVEL", "value": "debug"})
        service["spec"]["traffic"] = [{"revisionName": f"{name}-00001-abc", "percent": 100}]
        changed = f"{name}-00002-tf"
        template = cloud.services[name]["spec"]["template"]
        cloud.revisions[changed] = cloud_run.Revision(name, template, True)
        service["status"]["latestCreatedRevisionName"] = changed
        service["status"]["latestReadyRevisionName"] = changed
    code, said = ended(start(cloud, *arguments))
    assert code == 0, said
    for name in SERVICES:
        (target,) = cloud.services[name]["status"]["traffic"]
        serving = cloud.revisions[target["revisionName"]]
        assert {"name": "LOG_LEVEL", "value": "debug"} in serving.template["spec"]["containers"][0][
            "env"
        ]
    assert images(cloud) == {name: image(name, 1) for name in SERVICES}


def test_refusals_are_repeated(cloud: cloud_run.CloudRun) -> None:
    """A conflict, too many requests, an unavailable service: on creation, and on a move."""
    statuses = dict(zip(SERVICES, (409, 429, 503, 409), strict=True))
    cloud.faults = [Fault("PUT", f"/services/{name}$", statuses[name]) for name in SERVICES]

    def refuse(method: str, path: str, body: dict[str, Any] | None) -> None:
        if cloud.traffic("interactive") == {"00002": 100} and len(cloud.faults) == 4:
            cloud.faults += [Fault("PUT", "/services/notify$", 409), Fault("PUT", "/api$", 429)]

    cloud.on_request = refuse
    code, said = release(cloud)
    assert code == 0, said
    assert traffic(cloud) == NEW
    assert len(cloud.faults) == 6
    assert all(fault.times == 0 for fault in cloud.faults)


def test_change_that_took_effect_behind_a_503_is_not_an_error(cloud: cloud_run.CloudRun) -> None:
    cloud.faults = [Fault("PUT", f"/services/{name}$", 503, 1, after=True) for name in SERVICES]
    code, said = release(cloud)
    assert code == 0, said
    assert {name: sum(t.values()) for name, t in traffic(cloud).items()} == dict.fromkeys(
        SERVICES, 100
    )
    assert all(list(split) != ["00001"] for split in traffic(cloud).values())


def test_refusals_are_repeated_on_the_way_back(cloud: cloud_run.CloudRun) -> None:
    cloud.down.add(("api", TAG))

    def refuse(method: str, path: str, body: dict[str, Any] | None) -> None:
        if cloud.traffic("notify") == {"00002": 100} and not cloud.faults:
            cloud.faults = [
                Fault("PUT", "/services/api$", 429, 1),
                Fault("PUT", "/services/notify$", 409, 1),
            ]

    cloud.on_request = refuse
    code, said = release(cloud, "--timeout=3")
    assert_rolled_back(cloud, code, said)


def test_traffic_that_another_person_moved_is_not_overwritten(cloud: cloud_run.CloudRun) -> None:
    def move(method: str, path: str, body: dict[str, Any] | None) -> None:
        if cloud.traffic("interactive") == {"00002": 100} and "notify-00009-abc" not in str(
            cloud.revisions
        ):
            template = cloud.services["notify"]["spec"]["template"]
            cloud.revisions["notify-00009-abc"] = cloud_run.Revision("notify", template, True)
            cloud.move("notify", "notify-00009-abc")

    cloud.on_request = move
    code, said = release(cloud)
    assert code == 3, said
    assert "which this release did not set" in said
    assert traffic(cloud) == {**OLD, "notify": {"00009": 100}}
    assert "check these by hand: notify" in said


def test_expired_token_leaves_the_journal_for_a_later_roll_back(
    cloud: cloud_run.CloudRun,
) -> None:
    def expire(method: str, path: str, body: dict[str, Any] | None) -> None:
        if cloud.traffic("interactive") == {"00002": 100}:
            cloud.token = "renewed"

    cloud.on_request = expire
    code, said = release(cloud)
    assert code == 3, said
    assert "check these by hand" in said
    assert "UNAUTHENTICATED" in said or "401" in said or "credentials" in said
    assert (cloud.folder / "j").exists()
    # Another release does not begin on top of it.
    (cloud.folder / "token").write_text("renewed")
    cloud.on_request = None
    code, said = release(cloud)
    assert code == 2
    assert "roll-back" in said
    code, said = roll_back(cloud)
    assert code == 0, said
    assert_rolled_back(cloud, 1, said)


def test_killed_release_is_rolled_back_by_another_process(cloud: cloud_run.CloudRun) -> None:
    process = start(cloud, *options())
    until(lambda: cloud.traffic("interactive") == {"00002": 100}, "the first move", 120)
    process.kill()
    process.communicate(timeout=60)
    code, said = roll_back(cloud)
    assert code == 0, said
    assert_rolled_back(cloud, 1, said)
    code, said = roll_back(cloud)
    assert (code, said.strip()) == (0, "nothing to roll back")


def test_cancelled_workflow_ends_on_one_pair_of_versions(cloud: cloud_run.CloudRun) -> None:
    """GitHub sends SIGINT to the shell of the step, then SIGTERM after 7.5 s, then kills it.

    The shell is the process itself, by `exec`. The step that rolls back starts at once.
    """
    process = start(cloud, *options("--leave-interrupted"))
    until(lambda: cloud.traffic("api") == {"00002": 100}, "the last move", 120)
    process.send_signal(signal.SIGINT)
    back = start(cloud, "roll-back")
    code, said = ended(process)
    assert code == 3, said
    assert "`roll-back` has to follow" in said
    code, said = ended(back)
    assert code == 0, said
    assert_rolled_back(cloud, 1, said)


def test_interrupted_release_rolls_itself_back(cloud: cloud_run.CloudRun) -> None:
    process = start(cloud, *options())
    until(lambda: cloud.traffic("interactive") == {"00002": 100}, "the first move", 120)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)  # an impatient person
    code, said = ended(process)
    assert_rolled_back(cloud, code, said)


def test_roll_back_waits_for_the_gcloud_of_a_killed_release(cloud: cloud_run.CloudRun) -> None:
    """Otherwise that gcloud would move the traffic after the roll-back."""
    if REAL:
        pytest.skip("the moment cannot be chosen with the real gcloud")
    held: list[float] = []

    def hold(method: str, path: str, body: dict[str, Any] | None) -> None:
        change = body and body.get("spec", {}).get("traffic", [{}])[0].get("revisionName", "")
        if method == "PUT" and str(change).startswith("interactive-00002") and not held:
            held.append(time.monotonic())
            time.sleep(3)

    cloud.on_request = hold
    process = start(cloud, *options())
    until(lambda: held, "the move is on its way", 120)
    process.kill()
    process.communicate(timeout=60)
    code, said = roll_back(cloud)
    assert code == 0, said
    assert time.monotonic() - held[0] >= 3
    assert_rolled_back(cloud, 1, said)


def test_missing_requirements_are_reported_in_one_list(
    cloud: cloud_run.CloudRun, stack: Stack
) -> None:
    api = cloud.services["api"]
    api["spec"]["template"]["spec"]["containers"][0]["env"] = [
        {"name": "API_KEYS", "value": "required"}
    ]
    api["metadata"]["annotations"]["run.googleapis.com/default-url-disabled"] = "true"
    annotations = cloud.services["notify"]["metadata"]["annotations"]
    annotations["run.googleapis.com/default-url-disabled"] = "true"
    dead = cloud_run.Revision("interactive", cloud.services["interactive"]["spec"]["template"])
    cloud.revisions["interactive-00000-old"] = dead
    cloud.services["interactive"]["status"]["traffic"].append(
        {"revisionName": "interactive-00000-old", "tag": "old"}
    )
    code, said = release(cloud, action="check")
    assert code == 2
    assert "Nothing was changed" in said
    for expected in (
        "the tag old names interactive-00000-old, which is not ready",
        "notify: its default address is disabled",
        "API_URL",
        "SMOKE_API_KEY",
    ):
        assert expected in said
    assert not [call for call in cloud.calls if call[0] == "PUT"]

    code, said = ended(start(cloud, *options("--workers=", "--region=", action="check")))
    assert code == 2
    assert "GCP_REGION" in said
    assert "WORKER_SERVICES" in said


def test_domain_without_an_address_is_missing(cloud: cloud_run.CloudRun) -> None:
    code, said = release(cloud, "--api-url=https://labels.invalid")
    assert code == 2
    assert "labels.invalid has no address: create the A record" in said
    assert traffic(cloud) == OLD


def test_check_names_the_scopes_that_a_key_lacks(
    stack: Stack, tmp_path: Path, colour_bundle: Path
) -> None:
    settings = {"DATA_DIR": stack.environment["DATA_DIR"], "API_KEYS": "required"}
    with ExitStack() as opened:
        secured = Stack(tmp_path, colour_bundle, **settings)
        opened.callback(secured.__exit__)
        secured.start("api")
        url = str(secured.api.base_url)
        lacking = list(preflight.key_problems(Target(url, secured.make_key("--scopes=read"))))
        (wrong,) = preflight.key_problems(Target(url, "glimpse_wrong"))
        complete = secured.make_key("--scopes=classify,read,admin")
        assert list(preflight.key_problems(Target(url, complete))) == []
    assert len(lacking) == 2
    assert "needs the scope classify" in lacking[0]
    assert "needs the scope admin" in lacking[1]
    assert "does not accept the key" in wrong


def test_service_that_does_not_exist_is_missing(cloud: cloud_run.CloudRun) -> None:
    del cloud.services["notify"]
    code, said = release(cloud)
    assert code == 2
    assert "does the service exist" in said


def test_smoke_test_deletes_its_image(stack: Stack) -> None:
    lines: list[str] = []
    model = smoke(Target(str(stack.api.base_url)), 60, lines.append)
    assert "@" in model
    assert lines[0].startswith("uploaded: 202")
    assert lines[-1] == "deleted"


def test_smoke_test_fails_without_a_worker(tmp_path: Path, colour_bundle: Path) -> None:
    with Stack(tmp_path / "s", colour_bundle) as alone:
        alone.stop("worker")
        with pytest.raises(SmokeFailed, match="no labels in time"):
            smoke(Target(str(alone.api.base_url)), 1.5)


def test_random_images_differ_and_are_accepted(stack: Stack) -> None:
    first, second = random_image(b"1"), random_image(b"2")
    assert sha256(first) != sha256(second)
    answer = stack.api.post(
        "/api/v1/images", content=first, headers={"content-type": "image/png", "prefer": "wait=20"}
    )
    assert answer.json()["status"] == "success"


def test_secrets_are_not_sent_over_plain_http() -> None:
    with pytest.raises(ValueError, match="plain HTTP"):
        Target("http://glimpse.example", api_key="k")
    assert "secret" not in repr(Target("https://glimpse.example", "secret", "secret"))


@pytest.mark.parametrize(
    "words",
    [
        ("run", "services", "describe", "api"),
        ("run", "revisions", "describe", "api-00001-abc"),
        ("run", "services", "update", "api", "--image=i", "--no-traffic"),
        ("run", "services", "update-traffic", "api", f"--update-tags={TAG}=api-00001-abc"),
        ("run", "services", "update-traffic", "api", "--to-revisions=a=90,b=10",
         f"--remove-tags={TAG}"),
    ],
    ids=lambda words: " ".join(words[1:3]),
)  # fmt: skip
def test_gcloud_accepts_these_commands(words: tuple[str, ...], tmp_path: Path) -> None:
    """gcloud rejects one unknown flag, so it sends no request to Google."""
    command = [*CloudRun("p", "europe-west1").command(*words), "--no-such-flag"]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except FileNotFoundError:
        GCLOUD.absent()
    assert done.returncode == 2
    assert "unrecognized arguments: --no-such-flag" in done.stderr
